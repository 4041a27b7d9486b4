"""The same evaluation on several devices: of this machine, or of a Ray cluster.

The driver decides what is to be done and holds the one ledger. A worker holds the model on its
device; it gets parts of a stage, with the images, and sends back what a ledger is told. What a
point comes to depends on the point, the attack and the seed alone, so that the verdicts are those
of one machine; what looks across points (the audit's sample, what an eps hands on to the next, a
budget) stays with the driver.
"""

from robustkit.evaluation.distributed.executor import DistributedExecutor
from robustkit.evaluation.distributed.messages import Named
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.distributed.setup import Setup, set_up, staff

__all__ = ["DistributedExecutor", "Named", "Scheduler", "Setup", "set_up", "staff"]
