"""The one thing of `runtime/` that a stage depends on: a number, raised by hand.

A file in `runtime/` cannot change a byte of a result, so that editing it reruns nothing. If a fault
is mended there that did change results, raise the number: every stage reruns. CONTRIBUTING.md says
when.
"""

RUNTIME = 1
