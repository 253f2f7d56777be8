#!/usr/bin/env bash
# Slurm on one Debian machine, without systemd or cgroups, to try srun and sbatch with: as root
# `bash tools/slurm-single-node.sh start`, then `stop`; `status` shows the node. Every daemon listens on the
# loopback only. The machine is one node with all its cores, and the configuration is /etc/slurm/slurm.conf,
# which must be this script's or not there. docs/ranks.md says what to run.
set -euo pipefail

mark='# Written by tools/slurm-single-node.sh'
conf=/etc/slurm/slurm.conf
state=/var/lib/slurm/single-node
logs=/var/log/slurm
munge_run=/run/munge

fail() {
  echo "slurm-single-node: $*" >&2
  exit 1
}

install_packages() {
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v srun >/dev/null &&
    command -v munged >/dev/null && return
  apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge ||
    fail "slurm-wlm and munge could not be installed"
}

configure() {
  local host cores
  host=$(hostname -s)
  # As CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1.
  cores=$(slurmd -C | tr ' ' '\n' | grep -E '^(CPUs|Boards|SocketsPerBoard|CoresPerSocket|ThreadsPerCore)=' | paste -sd' ')
  [ ! -e "$conf" ] || grep -qxF "$mark" "$conf" || fail "$conf is of another Slurm: move it away first"
  mkdir -p "$state/ctld" "$state/d" "$logs" "$(dirname "$conf")"
  cat >"$conf" <<END
$mark
ClusterName=single
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$logs/slurmctld.log
SlurmdLogFile=$logs/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 $cores State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
}

node() {
  timeout 10 sinfo --noheader --Format=statelong 2>/dev/null | tr -d ' ' || true
}

start() {
  install_packages
  configure
  if ! munge -n 2>/dev/null </dev/null | unmunge >/dev/null 2>&1; then
    install -d -o munge -g munge -m 755 "$munge_run"
    runuser -u munge -- munged || fail "munged does not start: see /var/log/munge/munged.log"
  fi
  pgrep -x slurmctld >/dev/null || slurmctld || fail "slurmctld does not start: see $logs/slurmctld.log"
  pgrep -x slurmd >/dev/null || slurmd || fail "slurmd does not start: see $logs/slurmd.log"
  local _
  for _ in $(seq 60); do
    if [ "$(node)" = idle ]; then
      echo "the node $(hostname -s) is idle: try \`srun -n 2 -c 1 hostname\`"
      return
    fi
    sleep 1
  done
  fail "the node is not idle after a minute but '$(node)': see $logs"
}

stop() {
  [ ! -e "$conf" ] || grep -qxF "$mark" "$conf" || fail "$conf is of another Slurm, which this script leaves alone"
  local name pid
  for name in slurmd slurmctld; do
    pid=$(cat "$state/$name.pid" 2>/dev/null) || continue
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != "$name" ] || kill "$pid"
  done
  runuser -u munge -- munged --stop >/dev/null 2>&1 || true
}

[ "$(id -u)" -eq 0 ] || fail "it needs root"
case "${1-}" in
  start) start ;;
  stop) stop ;;
  status) sinfo --Node --long && squeue ;;
  *) fail "what: start, stop or status?" ;;
esac
