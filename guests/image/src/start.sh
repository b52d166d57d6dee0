#!/usr/lib/tandem/busybox sh
# The machine from here on: network, then the command; when that ends, so does the machine.
#
# Kernel command line: those of the network (see there), and
# tandem.run="COMMAND", in which \" is a quote and \\ a backslash, or tandem.run=COMMAND,WITH,COMMAS,FOR,SPACES.
export PATH=/usr/lib/tandem/bin
export HOME=/root TERM=linux

# The end of the machine by a reset, for what is no command's own end.
give_up() {
    echo "tandem: cannot go on: $1"
    sync
    reboot -f
}
# init starts this script again when something killed it.
[ ! -e /dev/tandem-started ] || give_up "what runs the command was killed"
touch /dev/tandem-started

run=
for word in $(cat /proc/cmdline); do
    case $word in
    tandem.run=*) run=$(echo "${word#*=}" | tr , ' ') ;;
    esac
done
# What is in quotes, to the first one with no backslash before it.
inside='\(\([^"\\]\|\\.\)*\)"'
for begin in 'tandem\.run="' '"tandem\.run='; do
    quoted=$(sed -n "s/.*$begin$inside.*/\1/p" /proc/cmdline)
    [ -z "$quoted" ] || run=$(echo "$quoted" | sed 's/\\\(["\\]\)/\1/g')
done

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
[ ! -e /etc/tandem/root ] || mount -t tmpfs tmpfs /run

# The folders in /run that packages ask for (tmpfiles.d(5), lines "d" and "D"): it begins empty.
mkdir -p /run/lock
cat /usr/lib/tmpfiles.d/*.conf /etc/tmpfiles.d/*.conf 2>/dev/null | while read -r kind path mode user group _; do
    case $kind$path in
    *%*) ;;
    [dD]*/run/*)
        mkdir -p "$path"
        [ "${mode:--}" = - ] || chmod "${mode#[~:]}" "$path"
        [ "${user:--}" = - ] || chown "$user" "$path"
        [ "${group:--}" = - ] || chgrp "$group" "$path"
        ;;
    esac
done

hostname -F /etc/hostname
/usr/lib/tandem/network || reboot -f
# Servers that fork to save a copy of themselves (redis) ask for this.
echo 1 >/proc/sys/vm/overcommit_memory
ulimit -n 65536

container=
if [ -z "$run" ] && [ -e /usr/lib/tandem/container ]; then
    container=yes
elif [ -z "$run" ] && [ -e /etc/tandem/command ]; then
    run=$(cat /etc/tandem/command)
fi
# A serial line says no size, and programs that page would page each line (psql).
stty rows 25 columns 80 2>/dev/null
# Keys that interrupt are for the command alone. It has the signals as they are by default.
trap : INT QUIT
# Debian's own programs come first; busybox's are there for what is not installed.
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/tandem/bin
# A container may have no shell.
shell=/usr/lib/tandem/bin/sh
[ ! -x /bin/sh ] || shell=/bin/sh
if [ -n "$container" ]; then
    echo "tandem: runs $(cat /etc/tandem/command)"
    /usr/lib/tandem/container
elif [ -n "$run" ]; then
    echo "tandem: runs $run"
    PATH=$path $shell -c "$run"
else
    echo "tandem: a shell; its end ends the machine"
    [ ! -x /bin/bash ] || shell=/bin/bash
    PATH=$path $shell
fi
status=$?
# A command that took the terminal for a session of its own left it hung up.
exec </dev/console >/dev/console 2>&1
echo "tandem: ended with status $status"
# It becomes the machine's: power-off ends with what was written to this register, and else with 0.
if [ "$status" != 0 ] && ! devmem 0xd0001020 8 "$status"; then
    give_up "the status $status of the command cannot be told through /dev/mem"
fi
sync
# Of no use where something still writes; then the root's journal has it.
[ ! -e /etc/tandem/root ] || mount -o remount,ro / 2>/dev/null
poweroff -f
