#!/bin/sh
# Installs the server as a systemd service, from the source tree around this file, on Debian 13, Ubuntu 24.04 or newer:
#
#   sudo sh server/deploy/systemd/install.sh [--caddy SITE]
#
# SITE is a domain that leads to this machine, for HTTPS by Caddy, or :80 for plain HTTP. The same command again upgrades;
# a version that does not become healthy is replaced by the one before it. Settings are in /etc/jaxcnn.env.
set -eu

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

site=
while [ $# -gt 0 ]; do
    case "$1" in
        --caddy) [ -n "${2-}" ] || fail "--caddy needs a domain, or :80."; site=$2; shift 2 ;;
        *) fail "there is no option $1: use --caddy SITE." ;;
    esac
done
[ "$(id -u)" = 0 ] || fail "run it as root."
command -v systemctl > /dev/null || fail "this machine has no systemd."
cd "$(dirname "$0")/../../.."

# Packages of the distribution. A machine that has just started may be updating its own, and holds apt's locks.
packages() {
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C
    apt-get -qq update &&
        apt-get -qq --option DPkg::Lock::Timeout=300 install --no-install-recommends \
            python3 python3-venv ca-certificates ${site:+caddy} > /dev/null
}
attempts=30
until said=$(packages 2>&1); do
    case $said in *"Could not get lock"*) attempts=$((attempts - 1)) ;; *) attempts=0 ;; esac
    [ "$attempts" -gt 0 ] || fail "the packages of the distribution cannot be installed: $said"
    sleep 10
done
python3 -c 'import sys; sys.exit(sys.version_info < (3, 12))' || fail "Python 3.12 or newer is needed."

# The server and its packages, each with the hash of the lock, in a folder named for the content. An upgrade of the
# system's Python needs other packages.
name=$({
    find server pyproject.toml requirements.lock -type f ! -name '*.pyc' -exec sha256sum {} + | sort
    python3 -VV
} | sha256sum | cut -c -12)
# The user of the service must be able to enter, whatever the umask.
install -d -m 755 /opt/jaxcnn
release=/opt/jaxcnn/$name
if [ ! -d "$release" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work" "$release.new"' EXIT
    python3 server/deploy/lock.py serve > "$work/serve.lock"
    python3 -m venv "$work/pip"
    rm -rf "$release.new"
    "$work/pip/bin/pip" install --quiet --no-cache-dir --require-hashes --target "$release.new" -r "$work/serve.lock"
    cp -R server "$release.new/"
    python3 -m compileall -q -j 0 "$release.new" > /dev/null || true
    chmod -R u=rwX,go=rX "$release.new"
    mv "$release.new" "$release"
fi

[ -e /etc/jaxcnn.env ] || install -m 600 /dev/null /etc/jaxcnn.env

# Switches to the version with its units, and waits until it responds.
start() {
    ln -sfn "$1" /opt/jaxcnn/next
    mv -T /opt/jaxcnn/next /opt/jaxcnn/current
    cmp -s "$1/server/deploy/systemd/jaxcnn.socket" /etc/systemd/system/jaxcnn.socket && changed= || changed=yes
    for unit in jaxcnn.service jaxcnn.socket; do
        install -m 644 "$1/server/deploy/systemd/$unit" /etc/systemd/system/ || return 1
    done
    systemctl --quiet enable jaxcnn.socket jaxcnn.service || return 1
    # In a root without a running systemd, as of an image, there is nothing to start.
    [ -d /run/systemd/system ] || return 0
    systemctl daemon-reload
    # systemd starts nothing that has failed too often.
    systemctl reset-failed jaxcnn.socket jaxcnn.service 2> /dev/null || true
    # The socket stays open, and with it what waits there, unless its unit is another; the service stops with it.
    [ -z "$changed" ] || systemctl stop jaxcnn.socket
    systemctl start jaxcnn.socket || return 1
    systemctl restart jaxcnn.service
    for _ in $(seq 60); do
        PYTHONPATH=$1 python3 -m server.deploy.container health && return 0
        ! systemctl --quiet is-failed jaxcnn.service || return 1
        sleep 1
    done
    return 1
}

previous=$(readlink /opt/jaxcnn/current || true)
if ! start "$release"; then
    journalctl --no-pager --lines 20 --unit jaxcnn.service >&2 || true
    [ -n "$previous" ] || fail "the server does not become healthy: its log is above."
    start "$previous" || fail "neither this version nor the one before it becomes healthy: the log is above."
    fail "the new version did not become healthy, and the one before it runs again: its log is above."
fi
# The proxy, with the limits of the version that runs.
if [ -n "$site" ]; then
    install -d /etc/systemd/system/caddy.service.d
    dropin=/etc/systemd/system/caddy.service.d/jaxcnn.conf
    printf '[Service]\nEnvironment=JAXCNN_SITE=%s\n' "$site" > "$dropin.new"
    # A restart cuts connections off, so only a changed proxy is restarted.
    if ! cmp -s "$dropin.new" "$dropin" || ! cmp -s server/deploy/systemd/Caddyfile /etc/caddy/Caddyfile; then
        install -m 644 server/deploy/systemd/Caddyfile /etc/caddy/Caddyfile
        mv "$dropin.new" "$dropin"
        changed=yes
    else
        changed=
        rm "$dropin.new"
    fi
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl "${changed:+re}start" caddy.service
    fi
fi
# Keep this version and the one before it.
find /opt/jaxcnn -mindepth 1 -maxdepth 1 -type d ! -path "$release" ! -path "${previous:-$release}" -exec rm -rf {} +
echo "installed $release"
