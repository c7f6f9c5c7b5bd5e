"""What no chapter owns: nets, many trained at once, batches, loops, and records.

`norms` has their layers, `stacked` trains many small networks on images, `sequences` on
names, and `records` keeps what came of it.
"""

from normbook.training.norms import norm as norm
