"""From where on a layer is ill: one list for what is said during a training and of its recording.

They are beyond what healthy networks show, fresh or trained: trained ReLU networks lose up to two thirds of their units
at usual rates.
"""

#: Share of a layer's units that are zero for every sample, and of those at the ends of their range for most samples.
DEAD, SATURATED = 0.8, 0.6
#: Effective rank of outputs below which a layer varies along one direction, of so many units at least: fewer may well
#: need no more.
COLLAPSED, WIDE = 1.1, 8
#: Root mean square of outputs: half precision overflows at 65,504, and sums of squares long before.
EXPLODING = 1e3
