"""The `gcloud` commands for a TPU: a virtual machine, or a queued resource of one or more slices.

Syntax: https://cloud.google.com/sdk/gcloud/reference/compute/tpus, groups `tpu-vm` and
`queued-resources`.
"""

import math
import re
from dataclasses import dataclass

from rml.errors import UserError
from tpu.chips import CHIPS, accelerator_type, parse_topology

READY = {"READY", "ACTIVE"}
GONE = {"PREEMPTED", "TERMINATED", "SUSPENDING", "SUSPENDED", "FAILED", "STOPPED"}
ABSENT = "ABSENT"


@dataclass(frozen=True)
class Pod:
    """A TPU that is or will be.

    Attributes:
      name: Name of the virtual machine or queued resource.
      zone: Where.
      topology: Such as "v5e:16x16".
      num_slices: Slices; more than one need a queued resource.
      project: None for the configured one.
      spot: Cheaper, may be taken away at any time.
      queued: Wait in the queue for capacity instead of failing where there is none.
    """

    name: str
    zone: str
    topology: str
    num_slices: int = 1
    project: str | None = None
    spot: bool = True
    queued: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise UserError(
                f"name is {self.name!r}, expected at most 63 lower-case letters, digits and "
                "hyphens, a letter first and no hyphen last"
            )
        accelerator_type(self.topology)
        if self.num_slices < 1:
            raise UserError(f"num_slices is {self.num_slices}, expected at least 1")
        if self.num_slices > 1 and not self.queued:
            raise UserError("several slices need a queued resource: set --queued")

    @property
    def group(self) -> str:
        """Group of commands."""
        return "queued-resources" if self.queued else "tpu-vm"

    @property
    def has_several_hosts(self) -> bool:
        """Tells whether more than one machine holds its chips."""
        kind, shape = parse_topology(self.topology)
        return self.num_slices > 1 or math.prod(shape) > CHIPS[kind].host_chips


def command(pod: Pod, verb: str, *args: str) -> list[str]:
    """A command on the pod, with its name, zone and project."""
    words = ["gcloud", "compute", "tpus", pod.group, verb, *args, f"--zone={pod.zone}"]
    return words + ([f"--project={pod.project}"] if pod.project else [])


def create(pod: Pod) -> list[str]:
    """Asks for the pod."""
    runtime = CHIPS[parse_topology(pod.topology)[0]].runtime
    args = [pod.name, f"--accelerator-type={accelerator_type(pod.topology)}"]
    args.append(f"--{'runtime-version' if pod.queued else 'version'}={runtime}")
    if pod.queued and pod.num_slices > 1:
        args += [f"--node-count={pod.num_slices}", f"--node-prefix={pod.name}"]
    elif pod.queued:
        args.append(f"--node-id={pod.name}")
    return command(pod, "create", *args, *(["--spot"] if pod.spot else []))


def describe(pod: Pod) -> list[str]:
    """Asks for the pod's state."""
    state = "state.state" if pod.queued else "state"
    return command(pod, "describe", pod.name, f"--format=value({state})")


def says_absent(said: str, pod: Pod) -> bool:
    """Tells whether `describe` failed because there is no such pod, not because of another thing.

    The service's answer is NOT_FOUND and, where it says more, the path of what is not there.
    """
    named = re.search(r"'projects/[^' ]*/([^' /]+)'", said)
    return "NOT_FOUND:" in said and (named is None or named[1] == pod.name)


def delete(pod: Pod) -> list[str]:
    """Deletes the pod, running or not."""
    return command(pod, "delete", pod.name, *(["--force"] if pod.queued else []), "--quiet")


def ssh(pod: Pod, shell: str, *, everywhere: bool = True) -> list[str]:
    """Runs a shell command on all workers, or on the first."""
    return command(pod, "ssh", pod.name, f"--command={shell}", *_where(pod, everywhere))


def copy(pod: Pod, source: str, target: str) -> list[str]:
    """Copies a file to all workers."""
    return command(pod, "scp", source, f"{pod.name}:{target}", *_where(pod, True))


def _where(pod: Pod, everywhere: bool) -> list[str]:
    which = "all" if everywhere else "0"
    return [f"--worker={which}", *([f"--node={which}"] if pod.queued else [])]
