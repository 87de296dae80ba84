#!/bin/bash
# A sweep as a Slurm job array: every task runs its part, and all share one results folder.
#
#     sbatch examples/slurm.sh grid.json --data data/cifar5m --out /shared/results
#
# Five minutes before a task's time is over it saves and is queued again, until its part is done.
# One task alone later: PARTS=16 sbatch --array=3 examples/slurm.sh grid.json ...
#SBATCH --job-name=sweep
#SBATCH --array=1-16
#SBATCH --time=04:00:00
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sweep-%A-%a.log
set -u
grid=${1:?usage: sbatch examples/slurm.sh GRID [options of deep-bootstrap sweep]}
part=$SLURM_ARRAY_TASK_ID/${PARTS:-$SLURM_ARRAY_TASK_MAX}

deep-bootstrap sweep "$grid" --part "$part" "${@:2}" &
trap 'was_signalled=1; kill -USR1 $!' USR1 TERM
while
    was_signalled=
    wait $!
    code=$?
    [ -n "$was_signalled" ] # wait returned because of the signal: ask again
do :; done

if [ "$code" -eq 75 ]; then # saved, with more to do
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
