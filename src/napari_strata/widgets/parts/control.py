"""State of one control of a dock, as the pure functions `resolve` of the docks return
it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Control:
    """State of a button, a check box or a combo box.

    Parameters
    ----------
    purpose
        Tooltip while the control can be used.
    why_not
        Reason why the control cannot be used, shown as the tooltip. Empty: it can be
        used.
    visible
        False for a control that would only confuse in this state.
    """

    purpose: str = ""
    why_not: str = ""
    visible: bool = True

    @property
    def enabled(self) -> bool:
        """True while there is no reason against using the control."""
        return not self.why_not

    @property
    def tooltip(self) -> str:
        """The reason against using the control, else its purpose."""
        return self.why_not or self.purpose
