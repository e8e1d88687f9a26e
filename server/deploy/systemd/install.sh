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

# Packages of the distribution.
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends python3 python3-venv ca-certificates ${site:+caddy} > /dev/null
python3 -c 'import sys; sys.exit(sys.version_info < (3, 12))' || fail "Python 3.12 or newer is needed."

# The server and its packages, each with the hash of the lock, in a folder named for the content.
name=$(find server requirements.lock -type f ! -name '*.pyc' -exec sha256sum {} + | sort | sha256sum | cut -c -12)
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

# The units, the settings, the proxy.
install -m 644 server/deploy/systemd/jaxcnn.service server/deploy/systemd/jaxcnn.socket /etc/systemd/system/
[ -e /etc/jaxcnn.env ] || install -m 600 /dev/null /etc/jaxcnn.env
systemctl --quiet enable jaxcnn.socket jaxcnn.service
if [ -n "$site" ]; then
    install -m 644 server/deploy/systemd/Caddyfile /etc/caddy/Caddyfile
    install -d /etc/systemd/system/caddy.service.d
    printf '[Service]\nEnvironment=JAXCNN_SITE=%s\n' "$site" > /etc/systemd/system/caddy.service.d/jaxcnn.conf
fi

# Switches to the version, and waits until it responds.
start() {
    ln -sfn "$1" /opt/jaxcnn/next
    mv -T /opt/jaxcnn/next /opt/jaxcnn/current
    # In a root without a running systemd, as of an image, there is nothing to start.
    [ -d /run/systemd/system ] || return 0
    systemctl daemon-reload
    # systemd starts nothing that has failed too often.
    systemctl reset-failed jaxcnn.socket jaxcnn.service 2> /dev/null || true
    systemctl start jaxcnn.socket
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
    journalctl --no-pager --lines 20 --unit jaxcnn.service >&2
    [ -n "$previous" ] || fail "the server does not become healthy: its log is above."
    start "$previous" || fail "neither this version nor the one before it becomes healthy: the log is above."
    fail "the new version did not become healthy, and the one before it runs again: its log is above."
fi
if [ -n "$site" ] && [ -d /run/systemd/system ]; then
    systemctl restart caddy.service
fi
# Keep this version and the one before it.
find /opt/jaxcnn -mindepth 1 -maxdepth 1 -type d ! -path "$release" ! -path "${previous:-$release}" -exec rm -rf {} +
echo "installed $release"
