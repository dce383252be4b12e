"""Figures that a learner moves: sliders where a kernel runs, a picture where none does.

interactive(lambda lam: credit(values, lam), lam=(0.0, 1.0, 0.05))
"""

import base64
import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from minipalm.plot.style import WIDTH, Figure

# (least, most, step), with the first value as a fourth if it is not in the middle; or
# the names to choose from
Control = tuple[float, ...] | Sequence[str]


class Interactive:
    """What a cell shows by ending with it.

    Attributes:
        controls: the sliders and lists, by the names of draw's arguments.
        view: what is shown now.
        error: one line in place of the view where draw has raised; empty if not.
    """

    def __init__(self, draw: Callable[..., Figure | str], controls: dict[str, Control]):
        self.draw = draw
        self.controls = {name: widget(name, one) for name, one in controls.items()}
        self.first, self.first_values = self.drawn(), self.values()
        if isinstance(self.first, str):
            self.view = ipywidgets.HTML(self.first)
        else:
            width = f"{round(100 * WIDTH)}px"
            self.view = ipywidgets.Image(value=self.first.png(), format="png")
            self.view.layout.width = width
        self.error = ipywidgets.HTML("")
        for control in self.controls.values():
            control.observe(self.redraw, names="value")
        self.box = ipywidgets.VBox([*self.controls.values(), self.view])

    def values(self) -> dict[str, Any]:
        return {name: one.value for name, one in self.controls.items()}

    def drawn(self) -> Figure | str:
        return self.draw(**self.values())

    def redraw(self, _: object = None) -> None:
        """Show what belongs to the controls as they are, if only why there is none."""
        try:
            new = self.drawn()
            self.view.value = new if isinstance(new, str) else new.png()
            shown = self.view
        except Exception as error:  # Jupyter would hide it, and leave the old picture
            said = html.escape(f"{type(error).__name__}: {error}".splitlines()[0])
            self.error.value = f"<pre>no picture for these values: {said}</pre>"
            shown = self.error
        self.box.children = (*self.controls.values(), shown)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The widget for JupyterLab; a picture, or text, for every other reader."""
        bundle = dict(self.box._repr_mimebundle_())
        bundle["text/plain"] = ", ".join(
            f"{name} = {value}" for name, value in self.first_values.items()
        )
        if isinstance(self.first, str):
            bundle["text/html"] = self.first
        else:
            bundle["image/png"] = base64.b64encode(self.first.png()).decode()
        return bundle


def widget(name: str, control: Control) -> ipywidgets.Widget:
    """A slider for numbers, a list to choose from for names."""
    if isinstance(control[0], str):
        return ipywidgets.Dropdown(options=list(control), description=name)
    low, high, step, *start = (one for one in control if not isinstance(one, str))
    first = start[0] if start else low + round((high - low) / step / 2) * step
    whole = all(isinstance(one, int) for one in control)
    kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    return kind(value=first, min=low, max=high, step=step, description=name)


def interactive(draw: Callable[..., Figure | str], **controls: Control) -> Interactive:
    """A figure, or text as HTML, that is drawn again when a control moves.

    Args:
        draw: takes the controls' values by name; fast enough to follow a hand.
        controls: name=(least, most, step) or (least, most, step, first) for numbers,
            whole ones if all of these are; name=["one", "two"] for a choice.

    On a page without a kernel the picture of the first values stands in its place.
    """
    return Interactive(draw, controls)
