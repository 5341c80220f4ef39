#!/bin/sh
# What must be there before the agent answers: mounts, name, network.
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
. /etc/boot.functions

mount_kernel
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev,mode=1777 shm /dev/shm
case $(option root) in
    '' | /dev/ram*) ;;
    *) mount -o remount,rw / ;;
esac
mounted /run || mount -t tmpfs -o nosuid,nodev,mode=0755 run /run
mounted /tmp || mount -t tmpfs -o nosuid,nodev,mode=1777 tmp /tmp

# ip=CLIENT:SERVER:GATEWAY:NETMASK:HOSTNAME:DEVICE:AUTOCONF:DNS:DNS, as Documentation/admin-guide/nfs
# of the kernel says. Debian's cloud kernel leaves it to us (CONFIG_IP_PNP is off).
spec=$(option ip)
IFS=: read -r client _ gateway netmask host device auto dns1 dns2 _ << END
$spec
END
name=$(option hostname) || name=$host
hostname "${name:-drover-guest}"
echo "127.0.0.1 localhost ${name:-drover-guest}" > /etc/hosts
ip link set lo up

device=${device:-eth0}
case $spec in
    '' | off | none) ;;
    dhcp | on | any) udhcpc -b -q -i eth0 -s /usr/share/udhcpc/default.script > /dev/null 2>&1 & ;;
    *)
        if [ "${auto:-off}" = dhcp ]; then
            ip link set "$device" up
            udhcpc -b -q -i "$device" -s /usr/share/udhcpc/default.script > /dev/null 2>&1 &
        elif [ -e "/sys/class/net/$device" ] && [ -n "$client" ]; then
            ifconfig "$device" "$client" netmask "${netmask:-255.255.255.0}" up
            [ -n "$gateway" ] && route add default gw "$gateway" dev "$device"
            : > /etc/resolv.conf
            for dns in $dns1 $dns2; do echo "nameserver $dns" >> /etc/resolv.conf; done
        fi
        ;;
esac
exit 0
