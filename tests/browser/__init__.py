"""Tests in a real browser: Debian's Chromium, which install.sh installs."""
