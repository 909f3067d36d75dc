#!/bin/bash
# A Slurm of one node on this machine, for tests: bash one_node.sh start|stop FOLDER.
#
# Run it as root on Debian or Ubuntu. `start` installs slurm-wlm and munge with apt-get if they are missing, starts the
# daemons without systemd (which containers lack), and writes the configuration and logs to FOLDER. Use it with
# SLURM_CONF=FOLDER/slurm.conf. If this is impossible, it prints why and exits with 77.
set -u

skip() {
    echo "one_node.sh: $*" >&2
    exit 77
}

if test $# -ne 2 || ! [[ $1 =~ ^(start|stop)$ ]]; then
    echo 'usage: one_node.sh start|stop FOLDER' >&2
    exit 2
fi
folder=$(realpath -m "$2")

if test "$1" = stop; then
    for daemon in slurmd slurmctld munged; do
        pid=$(cat "$folder/$daemon.pid" 2> /dev/null) || continue
        kill "$pid"
        for ((i = 0; i < 100; i++)); do
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.1
        done
    done
    rm -rf "$(readlink "$folder/munge")"
    exit 0
fi

test "$(id -u)" -eq 0 || skip 'only root can start the daemons'
export PATH=/usr/sbin:/sbin:$PATH
if ! command -v sbatch slurmctld slurmd munged > /dev/null; then
    command -v apt-get > /dev/null || skip 'neither Slurm nor apt-get is installed'
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; } > /dev/null ||
        skip 'apt-get cannot install slurm-wlm and munge'
fi

mkdir -p "$folder"/{state,spool} && chmod 755 "$folder" || exit 1

# Run munge with a separate socket and key, so that another munge on the machine is not affected. Munge requires folders
# that only their owner and root can write to.
munge=$(mktemp -d /run/prompt_jax_munge.XXXXXX) || exit 1
dd if=/dev/urandom of="$munge/key" bs=1024 count=1 2> /dev/null
ln -s "$munge" "$folder/munge"
chown -R munge: "$munge" && chmod 400 "$munge/key" && chmod 755 "$munge"
setpriv --reuid=munge --regid=munge --clear-groups munged --socket="$munge/socket" --key-file="$munge/key" \
    --pid-file="$munge/pid" --log-file="$munge/log" --seed-file="$munge/seed" || exit 1
cp "$munge/pid" "$folder/munged.pid"

node=$(hostname -s)
memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
cat > "$folder/slurm.conf" << END
ClusterName=tests
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
KillWait=20
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$folder/slurm.conf
slurmctld && slurmd -N "$node" || exit 1
for ((i = 0; i < 300; i++)); do
    test "$(sinfo --noheader --format=%T 2> /dev/null)" = idle && exit 0
    sleep 0.1
done
echo "one_node.sh: the node did not become idle; see the logs in $folder" >&2
exit 1
