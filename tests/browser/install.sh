#!/usr/bin/env bash
# Install Debian's Chromium and its driver, which tests/browser needs, where they are missing and root may. Where that
# cannot be, say so and fail: the tests then are skipped.
set -euo pipefail

command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit
packages=(chromium chromium-driver fonts-dejavu-core)
if ! command -v apt-get >/dev/null; then
  echo "tests/browser needs Chromium and chromedriver, and can install them on Debian only" >&2
  exit 1
elif [ "$(id -u)" -ne 0 ]; then
  echo "tests/browser needs packages that only root can install: sudo apt-get install -y ${packages[*]}" >&2
  exit 1
fi
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
