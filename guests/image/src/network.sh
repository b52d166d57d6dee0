#!/usr/lib/tandem/busybox sh
# The guest's network: the loopback, and eth0 as the kernel command line says: tandem.ip=ADDRESS/PREFIX or none,
# tandem.gw=ADDRESS or none. Fails if there should be one and is none.
export PATH=/usr/lib/tandem/bin

ip=10.77.0.2/24
gw=10.77.0.1
for word in $(cat /proc/cmdline); do
    case $word in
    tandem.ip=*) ip=${word#*=} ;;
    tandem.gw=*) gw=${word#*=} ;;
    esac
done
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
    sync
    exit 1
fi
