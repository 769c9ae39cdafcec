#!/bin/busybox sh
# The guest's PID 1: brings up the little that a test needs, then runs the scripts that the host sends.
#
# Protocol, on the virtio-serial port named `agent`; the host waits for an answer before it sends again:
#   guest: ready RELEASE UPTIME   \n                       once, after each boot
#   host:  run LENGTH\n SCRIPT                            SCRIPT is LENGTH bytes for sh
#   guest: done STATUS OUT_LENGTH ERR_LENGTH\n OUT ERR    exit status, standard output, standard error
# When the host closes its end (a test was killed, say), the guest powers itself off.
export PATH=/bin:/opt/tools HOME=/root
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /mnt /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
while read -r module; do
    insmod "/modules/$module" || echo "init: cannot load $module"
done </modules/order

# The driver makes the port when the host's announcement of it arrives, some time after it is loaded.
port=
until [ -n "$port" ]; do
    for name in /sys/class/virtio-ports/*/name; do
        [ "$(cat "$name" 2>/dev/null)" = agent ] && port=$(basename "$(dirname "$name")")
    done
    [ -n "$port" ] || usleep 10000
done
exec 3<>"/dev/$port"
echo "ready $(uname -r) $(cut -d ' ' -f 1 /proc/uptime)" >&3

while read -r word length <&3; do
    if [ "$word" != run ]; then
        echo "init: the host said '$word'"
        break
    fi
    head -c "$length" <&3 >/run/script
    (cd / && exec sh /run/script) </dev/null >/run/out 2>/run/err 3<&-
    status=$?
    echo "done $status $(stat -c %s /run/out) $(stat -c %s /run/err)" >&3
    cat /run/out /run/err >&3
done
poweroff -nf
