"""The numbers at which scores are given."""

from __future__ import annotations

#: tIoU thresholds of mAP@1 that the paper lists (section 5.2.3).
THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
#: tIoU thresholds that ``avg_mAP@1`` averages over.
AVERAGED = (0.5, 0.6, 0.7, 0.8, 0.9)
#: tIoU thresholds of average recall, as in the ActivityNet proposal task.
RECALL_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
#: Numbers of proposals at which average recall is given.
BUDGETS = (1, 5, 10, 50, 100)
#: Lengths in seconds that divide short, middle and long truths.
LENGTH_BOUNDS = (10.0, 30.0)
