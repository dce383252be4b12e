"""Interactive figures without a browser: controls, redrawing, what stands in print."""

import base64

import ipywidgets

from minipalm.plot.interactive import interactive


class Picture:
    """Stands for a figure: its bytes say what it was drawn from."""

    def __init__(self, **values):
        self.values = values

    def png(self):
        return repr(self.values).encode()


def test_whole_numbers_make_whole_sliders_and_names_a_list():
    shown = interactive(Picture, n=(0, 10, 1), x=(0.0, 1.0, 0.1), who=["a", "b"])
    kinds = [type(one) for one in shown.controls.values()]
    assert kinds == [
        ipywidgets.IntSlider,
        ipywidgets.FloatSlider,
        ipywidgets.Dropdown,
    ]
    assert shown.controls["who"].options == ("a", "b")
    assert [one.description for one in shown.controls.values()] == ["n", "x", "who"]


def test_a_control_begins_in_the_middle_or_where_it_is_told():
    shown = interactive(Picture, n=(0, 10, 1), m=(0, 10, 1, 3), x=(0.0, 1.0, 0.25, 1.0))
    assert shown.values() == {"n": 5, "m": 3, "x": 1.0}
    assert shown.view.value == repr(shown.values()).encode()
    assert interactive(Picture, who=["a", "b"]).values() == {"who": "a"}


def test_a_moved_control_draws_anew():
    shown = interactive(Picture, n=(0, 10, 1), who=["a", "b"])
    shown.controls["n"].value = 7
    assert shown.view.value == repr({"n": 7, "who": "a"}).encode()
    shown.controls["who"].value = "b"
    assert shown.view.value == repr({"n": 7, "who": "b"}).encode()
    text = interactive(lambda n: f"<b>{n}</b>", n=(0, 10, 1))
    text.controls["n"].value = 1
    assert isinstance(text.view, ipywidgets.HTML) and text.view.value == "<b>1</b>"


def test_where_draw_raises_its_line_stands_in_place_of_the_picture():
    def draw(n):
        if n == 3:
            raise ValueError("n < 4 & odd\nand more")
        return Picture(n=n)

    shown = interactive(draw, n=(0, 10, 1))
    shown.controls["n"].value = 3
    assert shown.view not in shown.box.children
    assert shown.box.children[-1].value == (
        "<pre>no picture for these values: ValueError: n &lt; 4 &amp; odd</pre>"
    )
    shown.controls["n"].value = 4
    assert shown.box.children[-1] is shown.view
    assert shown.view.value == repr({"n": 4}).encode()


def test_in_print_text_and_picture_are_of_the_same_values():
    shown = interactive(Picture, n=(0, 10, 1))
    shown.controls["n"].value = 9
    bundle = shown._repr_mimebundle_()
    assert bundle["text/plain"] == "n = 5"
    assert base64.b64decode(bundle["image/png"]) == repr({"n": 5}).encode()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert interactive(str, object=["<i>", "b"])._repr_mimebundle_()["text/html"] == (
        "<i>"
    )
