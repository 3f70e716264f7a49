#!/usr/bin/env bash
# Install what tests/cluster needs and this machine lacks, from Debian. The tests start daemons of their own beside any services.
set -euo pipefail

missing=()
for program in slurmctld slurmd srun; do
  [ -x "$(PATH=$PATH:/usr/sbin command -v $program)" ] || { missing+=(slurm-wlm); break; }
done
[ -x "$(PATH=$PATH:/usr/sbin command -v munged)" ] || missing+=(munge)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
[ ${#missing[@]} -eq 0 ] && exit

if ! command -v apt-get >/dev/null; then
  echo "make test-cluster needs SLURM, munge and PostgreSQL, and can install them on Debian only: ${missing[*]}" >&2
  exit 1
elif [ "$(id -u)" -ne 0 ]; then
  echo "make test-cluster needs packages that only root can install. Run this, then try again:" >&2
  echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
