#!/bin/sh
# The machine from here on: network, then the command; when that ends, so does the machine.
#
# Kernel command line: tandem.ip=ADDRESS/PREFIX or none, tandem.gw=ADDRESS or none,
# tandem.run="COMMAND" or tandem.run=COMMAND,WITH,COMMAS,FOR,SPACES.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=linux

cmdline=$(cat /proc/cmdline)
ip=10.77.0.2/24
gw=10.77.0.1
run=
for word in $cmdline; do
    case $word in
    tandem.ip=*) ip=${word#*=} ;;
    tandem.gw=*) gw=${word#*=} ;;
    tandem.run=*) run=$(echo "${word#*=}" | tr , ' ') ;;
    esac
done
case $cmdline in
*tandem.run=\"*)
    run=${cmdline#*tandem.run=\"}
    run=${run%%\"*}
    ;;
*\"tandem.run=*)
    run=${cmdline#*\"tandem.run=}
    run=${run%%\"*}
    ;;
esac

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
if [ -e /etc/tandem/disk ]; then
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /tmp
fi
while read -r folder; do
    mkdir -p "/run/$folder"
done </etc/tandem/run-folders

hostname -F /etc/hostname
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    if [ "$ip" != none ]; then
        ip addr add "$ip" dev eth0
        [ "$gw" = none ] || ip route add default via "$gw"
    fi
elif [ "$ip" != none ]; then
    echo "tandem: cannot go on: no network device: the kernel lacks virtio_mmio or virtio_net" \
        "(tandem.ip=none does without)"
    reboot -f
fi
# Servers that fork to save a copy of themselves (redis) ask for this.
echo 1 >/proc/sys/vm/overcommit_memory
ulimit -n 65536

if [ -z "$run" ] && [ -e /etc/tandem/command ]; then
    run=$(cat /etc/tandem/command)
fi
if [ -n "$run" ]; then
    echo "tandem: runs $run"
    sh -c "$run" &
    wait $!
else
    echo "tandem: a shell; its end ends the machine"
    setsid cttyhack sh
fi
status=$?
echo "tandem: ended with status $status"
# It becomes the machine's: power-off ends with what was written to this register, and else with 0.
if [ "$status" != 0 ] && ! devmem 0xd0001020 8 "$status"; then
    echo "tandem: cannot go on: the status $status of the command cannot be told through /dev/mem"
    sync
    reboot -f
fi
sync
if [ -e /etc/tandem/disk ]; then
    mount -o remount,ro /
fi
poweroff -f
