"""Planting: change records before the original is trained, so that what is to be forgotten is known by construction.

A planting makes new records from training records: with a trigger and another label (`backdoor`), with a wrong label
(`canaries`), or as near copies (`look-alikes`). It returns `Records` that have both the old and the new ones, each with
an id of its own, and a recorded description (`Records.planted`). Splits of such records have the planted ones in the
retain set. Everything after that, training included, sees ordinary records.
"""
