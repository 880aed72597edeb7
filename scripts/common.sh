# shellcheck shell=bash
# What scripts/up and scripts/test share: words on the screen, root where it is needed, packages, the toolchain.
# Sourced, not run. Sets $root (the checkout) and $target (where cargo builds).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034
target=${CARGO_TARGET_DIR:-$root/target}
# Rust's installer changes the PATH of log-in shells only; system programs are not on every user's.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

interactive=false
if [[ -t 1 && ${CI:-} != true && ${TERM:-dumb} != dumb ]]; then interactive=true; fi

say() { printf '%s\n' "$*"; }
note() { printf '%s\n' "$*" >&2; }

die() {
    note "error: $1"
    shift
    for line in "$@"; do note "       $line"; done
    exit 1
}

now_ms() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# Milliseconds for people: 12 ms, 3.4 s, 2 min 5 s.
duration() {
    local ms=$1
    if ((ms < 1000)); then
        echo "$ms ms"
    elif ((ms < 60000)); then
        echo "$((ms / 1000)).$((ms % 1000 / 100)) s"
    else
        echo "$((ms / 60000)) min $((ms % 60000 / 1000)) s"
    fi
}

# One line that is written over on a terminal; elsewhere a new line, and not often.
status_last=0
status_line() {
    if $interactive; then
        printf '\r\033[K%s' "$(cut -c "1-$((${COLUMNS:-$(tput cols 2>/dev/null || echo 100)} - 1))" <<<"$1")"
    elif (($(now_ms) - status_last >= 15000)); then
        status_last=$(now_ms)
        say "   $1"
    fi
}
status_clear() { if $interactive; then printf '\r\033[K'; fi; }

# with_progress LABEL COMMAND…: runs it with its output in a file; shows the time and the last line meanwhile, and the
# end of the output when it fails.
with_progress() {
    local label=$1 log started pid code=0
    shift
    log=$(mktemp "$work/log.XXXXXX")
    started=$(now_ms)
    status_last=$started
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        if (($(now_ms) - started > 1000)); then
            status_line "$label, $(duration $(($(now_ms) - started))): $(tail -c 300 "$log" | tr '\r' '\n' | tail -n 1)"
        fi
        sleep 0.2
    done
    wait "$pid" || code=$?
    status_clear
    if ((code != 0)); then
        tail -n 60 "$log" >&2
        note "error: $label failed (status $code); its last lines are above"
        return "$code"
    fi
    say "✓ $label ($(duration $(($(now_ms) - started))))"
}

kept_environment=WARREN_TEMPLATE_CACHE,WARREN_DEBIAN_MIRROR,RUST_LOG,http_proxy,https_proxy,no_proxy
as_root() {
    if [[ $EUID == 0 ]]; then "$@"; else sudo --preserve-env="$kept_environment" -- "$@"; fi
}

# Asks for the password once, before anything is shown over.
need_root() {
    if [[ $EUID == 0 ]]; then return; fi
    command -v sudo >/dev/null || die "this needs root, and sudo is not installed" "run it as root"
    if ! sudo -n true 2>/dev/null; then
        say "Warren makes mounts, cgroups and network namespaces, and installs what it lacks; that needs root."
        sudo true || die "this needs root" "run it as root, or as a user who may use sudo"
    fi
}

need_linux() {
    local release major minor
    [[ $(uname -s) == Linux ]] || die "Warren runs sandboxes on Linux only"
    release=$(uname -r)
    major=${release%%.*}
    minor=${release#*.}
    minor=${minor%%[!0-9]*}
    if ((major < 5 || (major == 5 && minor < 19))); then
        die "Linux $release is too old" "sandboxes need 5.19 or newer: Debian 12, Ubuntu 24.04 or later"
    fi
}

# need_packages TEST PACKAGE REASON…: installs, in one go, those whose TEST (a program or an absolute path) is absent.
need_packages() {
    local missing=()
    while (($# >= 3)); do
        if ! { [[ $1 == /* && -e $1 ]] || command -v "$1" >/dev/null; }; then
            missing+=("$2")
            say "  $2: $3"
        fi
        shift 3
    done
    if ((${#missing[@]} == 0)); then return; fi
    command -v apt-get >/dev/null ||
        die "the packages above are missing, and there is no apt-get to install them" "install them and run this again"
    with_progress "reading package lists" as_root apt-get update -q ||
        note "the package lists are not all fresh; going on with those there are"
    with_progress "installing ${missing[*]}" \
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" ||
        die "could not install ${missing[*]}" "try: apt-get install ${missing[*]}"
}

# shellcheck disable=SC2034
server_packages=(
    cc build-essential "compiles the C parts of a few libraries"
    curl curl "asks the server whether it is ready"
    /etc/ssl/certs/ca-certificates.crt ca-certificates "lets cargo and the base template's build trust their servers"
    mke2fs e2fsprogs "makes the disks of sandboxes"
    mkfs.xfs xfsprogs "makes the volume that copies disks without copying their content"
    mmdebstrap mmdebstrap "builds the base template from Debian's packages"
    /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring "checks those packages' signatures"
    nft nftables "keeps sandboxes away from the host and each other"
    ip iproute2 "lets warren doctor and the tests try and see network links"
    unshare util-linux "runs the template's build apart from the host"
    lxcfs lxcfs "shows a sandbox its own memory in free and /proc"
)

need_rust() {
    local wanted have
    command -v cargo >/dev/null ||
        die "there is no Rust toolchain" "install one from https://rustup.rs, then run this again"
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    have=$(cd "$root" && rustc --version | cut -d ' ' -f 2)
    if [[ $(printf '%s\n' "$wanted" "${have%%-*}" | sort -V | head -n 1) != "$wanted" ]]; then
        die "Rust $have is too old, $wanted is needed" "run: rustup update stable"
    fi
}
