#!/bin/sh
# The guest's first program: kernel file systems, modules, and the root if it is on a disk.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

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
        echo "tandem: cannot go on: no root file system on /dev/vda$why"
        reboot -f
    fi
    for at in proc sys dev; do
        mount --move /$at /newroot/$at
    done
    exec switch_root /newroot /sbin/tandem-start
fi
exec /sbin/tandem-start
