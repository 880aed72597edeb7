//! `warren serve`: the control plane and one node, in this process.
//!
//! The control plane reaches the node through `warren-node-api` alone, as it would on another machine. Interrupt and
//! `SIGTERM` end the server in order: no new connections, open ones get a few seconds, then the node lets go of the
//! machine. Sandboxes run on unless `--stop-sandboxes` was given.

use std::fs::{DirBuilder, File};
use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;
use warren_control::listen::{Listener, Patience, TlsFiles};
use warren_control::{
    AuditSettings, Config as ControlConfig, Control, CustomDomain, OtlpTarget, SandboxDomain,
};
use warren_network::{GatewaySettings, Limits, Reach};
use warren_node::template::{self, BuildOptions};
use warren_node::{Config as NodeConfig, ImagesConfig, NetworkConfig, Node, Shutdown};
use warren_node_api::NodeClient;
use warren_types::Isolation;

/// Where the server keeps everything, unless told otherwise.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/warren";
/// How long open connections get to end once the server is asked to.
const DRAIN: Duration = Duration::from_secs(5);
/// How often at least it is looked whether images take too much.
const SWEEP: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070")]
    pub(crate) listen: SocketAddr,
    /// Where disks, templates and the database are kept
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    pub(crate) data_dir: PathBuf,
    /// End the sandboxes when the server stops, instead of leaving them running for the next start
    #[arg(long)]
    pub(crate) stop_sandboxes: bool,
    /// Address clients reach the server at, when it is not the one it listens on
    #[arg(long, value_name = "URL")]
    pub(crate) public_url: Option<String>,
    /// Domain whose subdomains lead to this server: previews are at {sandbox}-p{port}.DOMAIN
    #[arg(long, value_name = "DOMAIN", env = "WARREN_SANDBOX_DOMAIN", default_value = "localhost")]
    pub(crate) sandbox_domain: SandboxDomain,
    /// Domain of an organisation under which its previews may have a second name, and whose it is; may be repeated
    #[arg(long, value_name = "ORG=DOMAIN")]
    pub(crate) custom_domain: Vec<CustomDomain>,
    /// Whether previews of new sandboxes open to everybody, unless a create says otherwise
    #[arg(long, value_enum, default_value_t = PreviewAuth::Open)]
    pub(crate) preview_auth: PreviewAuth,
    /// Certificate chain to serve TLS with, in PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of that certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Name of the region, as sandboxes report it
    #[arg(long, value_name = "NAME", default_value = "local")]
    pub(crate) region: String,
    /// What keeps sandboxes apart from the host, unless a create asks for another
    #[arg(long, value_enum, default_value_t = Runtime::Auto)]
    pub(crate) runtime: Runtime,
    /// Do not let sandboxes trust the certificate authorities that were added to this host
    #[arg(long)]
    pub(crate) no_host_cas: bool,
    /// Size of the volume file made when the data directory cannot share file contents [default: fits the disk]
    #[arg(long, value_name = "GB")]
    pub(crate) volume_size: Option<u64>,
    /// Range of addresses sandboxes may reach although it is private, such as 10.1.0.0/16; may be repeated
    #[arg(long, value_name = "RANGE", value_parser = Reach::parse_range)]
    pub(crate) open_range: Vec<(Ipv4Addr, u8)>,
    /// Server that names are asked of, with its port, instead of the host's; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub(crate) resolver: Vec<SocketAddr>,
    /// File with certificate authorities (PEM) that the gateway trusts beside the host's
    #[arg(long, value_name = "FILE")]
    pub(crate) upstream_ca: Option<PathBuf>,
    /// Registry of images, HOST or HOST:PORT, to speak to without TLS and at whatever address; may be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) insecure_registry: Vec<String>,
    /// File with logins of registries, as container engines write it (config.json)
    #[arg(long, value_name = "FILE")]
    pub(crate) registry_config: Option<PathBuf>,
    /// Connections a sandbox may have open
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    pub(crate) max_connections: u32,
    /// Megabytes a second that a sandbox may send, and receive
    #[arg(long, value_name = "MB", default_value_t = Limits::default().megabytes_per_second)]
    pub(crate) bandwidth: u32,
    /// File with the keys that secrets are encrypted with, one a line, the one in use first [default: secrets.key in the
    /// data directory, made at the first start]
    #[arg(long, value_name = "FILE")]
    pub(crate) secrets_key_file: Option<PathBuf>,
    /// What images may take before those without a name that nobody uses are removed, such as 50G; 0 is never
    /// [default: half of the volume]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) image_budget: Option<u64>,
    /// How long an image must not have been used to be removed for that
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) image_unused_for: u64,
    /// How many days audit records are kept; 0 is for ever
    #[arg(long, value_name = "DAYS", default_value_t = AuditSettings::DEFAULT_RETENTION_DAYS)]
    pub(crate) audit_retention: u32,
    /// Record reads of files too, not only changes
    #[arg(long)]
    pub(crate) audit_reads: bool,
    /// OpenTelemetry collector to send audit records to, over OTLP/HTTP, such as http://127.0.0.1:4318
    #[arg(long, value_name = "URL", value_parser = parse_endpoint)]
    pub(crate) otlp_endpoint: Option<String>,
    /// Header to send to the collector, NAME=VALUE; may be repeated, or be separated by commas in the environment
    #[arg(
        long,
        value_name = "NAME=VALUE",
        env = "OTEL_EXPORTER_OTLP_HEADERS",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(crate) otlp_header: Vec<String>,
    /// Running sandboxes an organisation may have
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) max_running: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PreviewAuth {
    /// Whoever knows the name of a preview may open it
    Open,
    /// Every new sandbox has a token, in the answer of its create
    Required,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runtime {
    /// Virtual machines where KVM has been shown to work, containers elsewhere
    Auto,
    /// Namespaces, cgroups and seccomp on the host's kernel; nothing else can be asked for
    Container,
    /// A kernel of their own, in QEMU: with KVM where it works, by software emulation elsewhere
    Vm,
}

pub(crate) async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    start_log();
    let begun = Instant::now();
    let files = warren_node::raise_open_files();
    // Asked for before anything is started, so that nothing can be cut off half-way.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();

    let data_dir = make_data_dir(&args.data_dir)?;
    let _lock = lock(&data_dir)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("could not listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let tls = args.tls_cert.clone().zip(args.tls_key.clone());
    let tls = tls.map(|(certificate, key)| TlsFiles { certificate, key });
    let scheme = if tls.is_some() { "https" } else { "http" };
    let listener =
        Listener::new(listener, tls, stop.clone()).context("the server's address could not be served")?;
    let listener = listener.with_patience(patience(files));

    let starting = start(&args, &data_dir, &stop, &tasks);
    let (node, control) = tokio::select! {
        started = starting => started?,
        _ = interrupt.recv() => return Ok(ExitCode::FAILURE),
        _ = terminate.recv() => return Ok(ExitCode::FAILURE),
    };
    info!(url = %format!("{scheme}://{address}"), ms = begun.elapsed().as_millis(), "ready");

    let server = tokio::spawn(listener.serve(control.router()));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    info!("stopping");
    stop.cancel();
    tasks.close();
    let drained = async {
        let _ = server.await;
        tasks.wait().await;
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        info!("connections were still open after {} s", DRAIN.as_secs());
    }
    node.shutdown(if args.stop_sandboxes { Shutdown::StopSandboxes } else { Shutdown::KeepSandboxes }).await;
    control.finish().await;
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// What clients are given. Those that ask for nothing do not take the files of those that do.
fn patience(open_files: u64) -> Patience {
    let usual = Patience::default();
    let files = usize::try_from(open_files).unwrap_or(usize::MAX);
    Patience { quiet: usual.quiet.min(files / 8), ..usual }
}

async fn start(
    args: &ServeArgs,
    data_dir: &Path,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<(Node, Control)> {
    let custom_domains = custom_domains(args)?;
    let options = BuildOptions { trust_host_cas: !args.no_host_cas };
    let template =
        template::ensure_base(&template::cache_dir(), &options, |progress| show_progress(&progress))
            .await
            .context("the base template could not be made")?;
    let config = NodeConfig {
        data_dir: data_dir.to_owned(),
        program: std::env::current_exe().context("could not find this program's own file")?,
        template,
        isolation: match args.runtime {
            Runtime::Auto => None,
            Runtime::Container => Some(Isolation::Container),
            Runtime::Vm => Some(Isolation::Vm),
        },
        volume_size_bytes: args.volume_size.map(|gigabytes| gigabytes << 30),
        network: NetworkConfig {
            limits: Limits { connections: args.max_connections, megabytes_per_second: args.bandwidth },
            gateway: GatewaySettings {
                resolvers: args.resolver.clone(),
                reach: Reach::new(args.open_range.clone()),
                extra_roots: args.upstream_ca.clone(),
            },
        },
        images: ImagesConfig {
            insecure_registries: args.insecure_registry.clone(),
            registry_config: args.registry_config.clone(),
            trust_host_cas: !args.no_host_cas,
        },
    };
    let node = Node::start(config, stop.clone(), tasks.clone()).await.context("the node could not start")?;
    let otlp =
        args.otlp_endpoint.clone().map(|endpoint| otlp_target(endpoint, &args.otlp_header)).transpose()?;
    let config = ControlConfig {
        audit: AuditSettings { retention_days: args.audit_retention, reads: args.audit_reads, otlp },
        region: args.region.clone(),
        secrets_key_file: args.secrets_key_file.clone(),
        public_url: args.public_url.clone(),
        sandbox_domain: args.sandbox_domain.clone(),
        custom_domains,
        preview_auth_required: args.preview_auth == PreviewAuth::Required,
        max_running_per_org: args.max_running,
        image_budget_bytes: args.image_budget,
        image_unused_for: Duration::from_secs(args.image_unused_for),
        image_sweep_every: SWEEP.min(Duration::from_secs(args.image_unused_for.max(1))),
        ..ControlConfig::new(data_dir)
    };
    let control = Control::start(config, NodeClient::new(node.router()), stop.clone(), tasks.clone())
        .await
        .context("the control plane could not start")?;
    Ok((node, control))
}

/// No name may be below two of them, nor below one of them and the domain of all previews.
fn custom_domains(args: &ServeArgs) -> anyhow::Result<Vec<CustomDomain>> {
    for (place, domain) in args.custom_domain.iter().enumerate() {
        let is_taken = args.custom_domain[..place].iter().any(|other| other.overlaps(domain));
        if is_taken || args.sandbox_domain.overlaps(domain) {
            anyhow::bail!(
                "--custom-domain of {} overlaps another domain of this server; each name leads to one place",
                domain.org
            );
        }
    }
    Ok(args.custom_domain.clone())
}

/// The log goes to standard error; `RUST_LOG` chooses how much.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,rmcp=off,h2=error"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A reader that has gone, or a full disk, takes the log and nothing else: to say so there as well would end the task that
        // has something to say.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    // Fails only when there is a log already, which is as good.
    let _ = log.try_init();
}

/// Says how far the template is, in the log: it is what a first start waits for.
fn show_progress(progress: &template::Progress) {
    info!(percent = (progress.fraction * 100.0).round(), step = %progress.step, "making the base template");
}

/// Makes the data directory, for its owner alone, and returns its path without links.
fn make_data_dir(path: &Path) -> anyhow::Result<PathBuf> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| path.canonicalize())
        .with_context(|| format!("could not make the data directory {}", path.display()))
}

/// Keeps a second server off this data directory.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("could not open {}", path.display()))?;
    file.try_lock().with_context(|| {
        format!("another server is running on {}; stop it or choose another --data-dir", data_dir.display())
    })?;
    Ok(file)
}

/// Where audit records are sent, with what.
fn otlp_target(endpoint: String, headers: &[String]) -> anyhow::Result<OtlpTarget> {
    let mut map = reqwest::header::HeaderMap::new();
    for header in headers.iter().filter(|header| !header.is_empty()) {
        // The value is not repeated: it may be a credential.
        let bad = || {
            anyhow::anyhow!("--otlp-header must be NAME=VALUE, with a name and a value that headers can have")
        };
        let (name, value) = header.split_once('=').ok_or_else(bad)?;
        let name: reqwest::header::HeaderName = name.trim().parse().map_err(|_| bad())?;
        let mut value: reqwest::header::HeaderValue = value.trim().parse().map_err(|_| bad())?;
        value.set_sensitive(true);
        map.append(name, value);
    }
    Ok(OtlpTarget { endpoint, headers: map })
}

fn parse_endpoint(text: &str) -> Result<String, String> {
    let is_address = |url: reqwest::Url| {
        matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none()
    };
    let refused = || "it must be an address such as http://127.0.0.1:4318".to_owned();
    text.parse()
        .ok()
        .filter(|url: &reqwest::Url| is_address(url.clone()))
        .map(|_| text.to_owned())
        .ok_or_else(refused)
}

/// Bytes, as `500M`, `50G` or `1T` in powers of 1024, or as a plain number.
fn parse_size(text: &str) -> Result<u64, String> {
    let refused = || format!("{text:?} is not a size; write it as 500M, 50G or 1T");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(refused()),
    };
    let number: u64 = digits.parse().map_err(|_| refused())?;
    number.checked_mul(1 << shift).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_nothing_has_an_eighth_of_the_files_at_most() {
        assert_eq!(patience(1024).quiet, 128);
        assert_eq!(patience(u64::MAX).quiet, Patience::default().quiet);
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("500M", 500 << 20), ("2gb", 2 << 30), ("1TiB", 1 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "G", "-1G", "1.5G", "1 G", "1X", "99999999T", "é"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
