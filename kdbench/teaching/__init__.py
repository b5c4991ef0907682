"""All that is known about a teacher: weights and cards, frozen copies, what it says of each view, what a cohort shares.

Nothing here trains one: a teacher is a kept student, which the engine trains like any other cell.
"""
