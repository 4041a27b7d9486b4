"""The same evaluation on several devices: of this machine, or of a Ray cluster.

Enters: a stage of a run, as points and an attack or a certificate.
Leaves: verdicts in the one ledger of the driver.
Read first: scheduler.py, then worker.py; Ray's workers are started, and restarted, in ray_pool.py.

The driver decides what is to be done and holds the one ledger. A worker holds the model on its
device; it gets parts of a stage, with the images, and sends back what a ledger is told. What a
point comes to depends on the point, the attack and the seed alone, so that the verdicts are those
of one machine; what looks across points (the audit's sample, what an eps hands on to the next, a
budget) stays with the driver.
"""
