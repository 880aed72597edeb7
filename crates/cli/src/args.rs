//! The command line: what every command shares, and the list of commands. What one command takes stands in its own file.

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    agent, audit, build, checkpoint, completions, config, cp, create, doctor, egress, exec, execs, files,
    fork, get, hibernate, images, keys, kill, logs, ls, mcp, preview, reboot, scale, secret, secret_store,
    secrets, shell, snapshots, tags, templates, timeout, usage, version, wake,
};
use crate::{failure, serve};

const AFTER_HELP: &str = "\
Environment:
  OPENCOMPUTER_API_KEY   the API key
  OPENCOMPUTER_API_URL   the server's address
  NO_COLOR               no colours, also on a terminal
Flags win over the environment, the environment over ~/.config/warren/config.toml.
";

const GLOBAL_OPTIONS: &str = "Global options";

#[derive(Parser)]
#[command(
    name = "warren",
    version,
    about = "Warren: Linux machines for AI agents, on your own hardware",
    after_help = format!("{AFTER_HELP}\n{}", failure::EXIT_CODES),
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 110
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args)]
pub(crate) struct Shared {
    /// The API key. Others on this machine can see it here; the environment and the file are safer
    #[arg(long, global = true, help_heading = GLOBAL_OPTIONS, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// The server's address [default: http://127.0.0.1:7070]
    #[arg(long, global = true, help_heading = GLOBAL_OPTIONS, value_name = "URL")]
    pub(crate) api_url: Option<String>,
    /// Print data as JSON, as the API sends it
    #[arg(long, global = true, help_heading = GLOBAL_OPTIONS)]
    pub(crate) json: bool,
    /// Print data only, nothing about it
    #[arg(long, short, global = true, help_heading = GLOBAL_OPTIONS)]
    pub(crate) quiet: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a sandbox and print its id
    Create(create::CreateArgs),
    /// List sandboxes
    Ls(ls::LsArgs),
    /// Show a sandbox
    Get(get::GetArgs),
    /// End sandboxes and delete their disks
    Kill(kill::KillArgs),
    /// Run a command in a sandbox
    Exec(exec::ExecArgs),
    /// Commands of a sandbox: list, attach, kill
    #[command(subcommand)]
    Execs(execs::ExecsCommand),
    /// Show what a sandbox has logged, and follow it
    Logs(logs::LogsArgs),
    /// Open a terminal in a sandbox
    Shell(shell::ShellArgs),
    /// Agents that work on a folder of yours in a sandbox
    #[command(subcommand)]
    Agent(agent::AgentCommand),
    /// Copy files and folders to or from a sandbox
    Cp(cp::CpArgs),
    /// Work with the files of a sandbox
    #[command(subcommand)]
    Files(files::FilesCommand),
    /// Give a model the tools of a sandbox: MCP on standard input and output
    Mcp(mcp::McpArgs),
    /// Open what listens on a port of a sandbox: addresses, the token, links to share
    #[command(subcommand)]
    Preview(preview::PreviewCommand),
    /// Set after how many seconds without use a sandbox hibernates
    Timeout(timeout::TimeoutArgs),
    /// Show or change the tags of a sandbox
    Tags(tags::TagsArgs),
    /// Hibernate a sandbox; its next use wakes it
    Hibernate(hibernate::HibernateArgs),
    /// Wake a hibernated sandbox
    Wake(wake::WakeArgs),
    /// Start everything in a sandbox again, on the same disk
    Reboot(reboot::RebootArgs),
    /// Give a running sandbox more or less memory and CPU
    Scale(scale::ScaleArgs),
    /// Checkpoints: take, list, delete, go back to, publish
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    /// Make a sandbox that starts as a checkpoint was, and print its id
    Fork(fork::ForkArgs),
    /// Build an image that sandboxes start from, and print its name
    Build(build::BuildArgs),
    /// Images: list, delete, see what they take
    #[command(subcommand)]
    Images(images::ImagesCommand),
    /// Snapshots, which are images with a name: list, show, delete, publish
    #[command(subcommand)]
    Snapshots(snapshots::SnapshotsCommand),
    /// What sandboxes can be made from by name
    #[command(subcommand)]
    Templates(templates::TemplatesCommand),
    /// Show or change what a sandbox may reach
    #[command(subcommand)]
    Egress(egress::EgressCommand),
    /// Secret stores: make, list, change, delete
    #[command(subcommand)]
    SecretStore(secret_store::SecretStoreCommand),
    /// Secrets of a store: set, list, delete, see what they were used for
    #[command(subcommand)]
    Secret(secret::SecretCommand),
    /// Show what was done, and by whom; export the records, verify them
    Audit(audit::AuditArgs),
    /// Show what sandboxes were given and used
    Usage(usage::UsageArgs),
    /// Show or store the server's address and the key
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Server: run Warren on this machine
    Serve(serve::ServeArgs),
    /// Server: make, list and revoke API keys
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Server: change the key that secrets are encrypted with
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// Server: check that this machine has what Warren needs
    Doctor(doctor::DoctorArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
    /// Print the version
    Version,
}

impl Command {
    /// Whether it works on this machine's server rather than talks to one.
    pub(crate) fn is_server_side(&self) -> bool {
        match self {
            Self::Audit(args) => args.is_server_side(),
            _ => matches!(self, Self::Serve(_) | Self::Keys(_) | Self::Secrets(_) | Self::Doctor(_)),
        }
    }
}

/// Runs a command. Those that talk to a server read the configuration for it; the others do not need one.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<std::process::ExitCode> {
    let context = crate::context::Context::new(cli.shared);
    match cli.command {
        Command::Create(args) => create::run(&context, args).await,
        Command::Ls(args) => ls::run(&context, args).await,
        Command::Get(args) => get::run(&context, args).await,
        Command::Kill(args) => kill::run(&context, args).await,
        Command::Exec(args) => exec::run(&context, args).await,
        Command::Execs(command) => execs::run(&context, command).await,
        Command::Logs(args) => logs::run(&context, args).await,
        Command::Shell(args) => shell::run(&context, args).await,
        Command::Agent(command) => agent::run(&context, command).await,
        Command::Cp(args) => cp::run(&context, args).await,
        Command::Files(command) => files::run(&context, command).await,
        Command::Mcp(args) => mcp::run(&context, args).await,
        Command::Preview(command) => preview::run(&context, command).await,
        Command::Timeout(args) => timeout::run(&context, args).await,
        Command::Tags(args) => tags::run(&context, args).await,
        Command::Hibernate(args) => hibernate::run(&context, args).await,
        Command::Wake(args) => wake::run(&context, args).await,
        Command::Reboot(args) => reboot::run(&context, args).await,
        Command::Scale(args) => scale::run(&context, args).await,
        Command::Checkpoint(command) => checkpoint::run(&context, command).await,
        Command::Fork(args) => fork::run(&context, args).await,
        Command::Build(args) => build::run(&context, args).await,
        Command::Images(command) => images::run(&context, command).await,
        Command::Snapshots(command) => snapshots::run(&context, command).await,
        Command::Templates(command) => templates::run(&context, command).await,
        Command::Egress(command) => egress::run(&context, command).await,
        Command::SecretStore(command) => secret_store::run(&context, command).await,
        Command::Secret(command) => secret::run(&context, command).await,
        Command::Audit(args) => audit::run(&context, args).await,
        Command::Usage(args) => usage::run(&context, args).await,
        Command::Config(command) => config::run(&context, command),
        Command::Serve(args) => serve::run(args).await,
        Command::Keys(command) => keys::run(&context, command).await,
        Command::Secrets(command) => secrets::run(&context, command).await,
        Command::Doctor(args) => doctor::run(&context, args).await,
        Command::Completions(args) => completions::run(&context, &args),
        Command::Version => version::run(&context),
    }
}
