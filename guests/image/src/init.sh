#!/usr/lib/tandem/busybox sh
# The guest's first program: kernel file systems, modules, and the root if it is on a disk.
export PATH=/usr/lib/tandem/bin
/usr/lib/tandem/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

# Ends the machine, which says why.
give_up() {
    echo "tandem: cannot go on: $1"
    reboot -f
}
# The last file of what the kernel unpacked: it stops where memory is full, and goes on with what it has.
[ -e /tandem-end ] || give_up "the first root is not whole: memory is too small for it"

# Loads a module with what the kernel command line says for it, as MODULE.PARAMETER=VALUE.
load() {
    given=
    for word in $(cat /proc/cmdline); do
        case $word in
        "$1".*=*) given="$given ${word#*.}" ;;
        esac
    done
    # shellcheck disable=SC2086 # each parameter is a word of its own
    insmod "/modules/$1.ko" $given || echo "tandem: the module $1 does not load"
}
while read -r module; do
    load "$module"
done </modules/order

if [ -e /root-on-disk ]; then
    if ! mount -t ext4 /dev/vda /newroot; then
        why=
        [ -e /dev/vda ] || why=": there is no disk, or the kernel lacks virtio_mmio or virtio_blk"
        give_up "no root file system on /dev/vda$why"
    fi
    cmp -s /root-on-disk /newroot/etc/tandem/root || give_up "the disk is another image's"
    for at in proc sys dev; do
        mount --move /$at /newroot/$at
    done
    if [ -e /newroot/etc/tandem/systemd ]; then
        exec switch_root /newroot /sbin/init
    fi
    exec switch_root /newroot /usr/lib/tandem/busybox init
fi
# The kernel lets a root in memory grow to half of what memory there was before it was unpacked. From here on it
# may have three quarters of what is left.
free=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
used=$(stat -f -c '%S %b %f' / | awk '{ print $1 * ($2 - $3) / 1024 }')
mount -o "remount,size=$((used + free / 4 * 3))k" / || echo "tandem: the root in memory does not grow"
exec /usr/lib/tandem/busybox init
