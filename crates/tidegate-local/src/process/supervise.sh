# Runs one job and writes down how it ended. Arguments: the job's folder, the command.
#
# Who it is stands in `pid` before the command begins; without that nothing runs. The lock that says
# "this job lives" is held by standard error, which the command inherits.
set -fu
umask 077
job=$1
shift

started() {
    read -r line < "/proc/$$/stat" || return 1
    set -- $line
    echo "${22}"
}

start=$(started) || exit 125
read -r boot < /proc/sys/kernel/random/boot_id || exit 125
echo "$$ $start $boot" > "$job/.pid" || exit 125
mv "$job/.pid" "$job/pid" || exit 125

"$@"
code=$?

echo "$code" > "$job/.exit" && mv "$job/.exit" "$job/exit"
# What the command left running in its group ends here, this shell included.
kill -KILL 0
