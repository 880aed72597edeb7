# Runs inside the new tree, with bash -eu, after its configuration files were written.
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
# That of the host is not in here.
unset TMPDIR

# The user that agents are. Not secret, not locked in: root is one `sudo` away.
groupadd --system --force docker
useradd --create-home --uid 1000 --user-group --groups sudo,docker --shell /bin/bash sandbox
ln -sT /home/sandbox /workspace
visudo --check --quiet

# `pip install` and `npm install --global` without sudo then land where PATH already looks.
chown -R sandbox:sandbox /usr/local
install -d -m 0755 /var/lib/warren

locale-gen >/dev/null
update-ca-certificates >/dev/null
git lfs install --system --skip-repo >/dev/null
# No program ever waits for an answer to a package's question.
echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections

# Manuals are left out, and with them their folders, which some packages put links into.
install -d /usr/share/man/man{1..8}

# What the build left behind. apt fetches its lists anew.
rm -f /etc/apt/sources.list /etc/apt/apt.conf.d/99mmdebstrap /etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/cache/debconf/*-old
rm -rf /var/lib/dpkg/*-old /etc/*- /var/log/*.log /var/log/apt/* /tmp/* /var/tmp/* /run/*
install -d -o _apt -m 0700 /var/lib/apt/lists/partial

dpkg-query --show --showformat '${binary:Package} ${Version}\n'
