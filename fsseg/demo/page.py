"""How the page looks, in Gradio: models, supports, images, answers. `fsseg.demo.serve` shows it.

All text that somebody else may have written goes into text fields, never into Markdown or HTML.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from fsseg.demo.models import Models
from fsseg.demo.work import MOST_QUERIES, add_support, canvas_of, drawn, segment, told
from fsseg.errors import UserError
from fsseg.process.words import count

_INTRODUCTION = """# fsseg
Masks of images by the example of a few. Choose a model, add one or more supports (an image with its mask), give images,
and press *Segment*. Nothing leaves this machine."""
_BRUSH = "#D55E00"  # of support masks, as on the sheets

CSS = """
footer {display: none !important}
:focus-visible {outline: 3px solid #0072B2 !important; outline-offset: 2px}
"""
"""No footer, and a frame around what the keyboard is at."""


def theme() -> gr.themes.Base:
    """With fonts of the reader's own machine: no other is fetched."""
    return gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def page(models: Models, folder: Path) -> gr.Blocks:
    """The page.

    Args:
        folder: where uploads and outputs lie.
    """

    def choices() -> Any:
        offered = models.offered()
        first = offered[0][1] if offered else None
        return gr.Dropdown(choices=offered, value=first), gr.Textbox(models.advice(), visible=not offered)

    def show(image: str | None) -> Any:
        if not image:
            return None, gr.skip()
        try:
            return {"background": canvas_of(image), "layers": [], "composite": None}, ""
        except UserError as error:
            return None, told(error, folder)

    def add(image: str | None, editor: Any, mask: str | None, pairs: list[Any]) -> Any:
        try:
            pair, picture = add_support(image, drawn(editor), mask, folder)
        except UserError as error:
            return *(gr.skip() for _ in range(5)), told(error, folder)  # a drawing is not to be lost
        pairs = [*pairs, (pair, picture)]
        return pairs, [shown for _, shown in pairs], None, None, None, f"{count(len(pairs), 'support')} in use"

    def answer(model: str | None, pairs: list[Any], queries: list[str] | None) -> Any:
        try:
            shown = segment(models, model, [pair for pair, _ in pairs], queries or [], folder)
        except UserError as error:
            return [], None, told(error, folder)
        return shown.pictures, shown.files, shown.text

    with gr.Blocks(title="fsseg demo", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.Markdown(_INTRODUCTION)
        model = gr.Dropdown(label="Model", choices=[], interactive=True, elem_id="model")
        advice = gr.Textbox(label="No model", lines=3, interactive=False, visible=False)
        pairs = gr.State([])
        with gr.Row():
            with gr.Column():
                image, mask, editor, add_button, support_told, supports, clear = _supports()
            with gr.Column():
                queries, run, text, pictures, files = _images()
        private: dict[str, Any] = {"api_visibility": "private"}
        blocks.load(choices, None, [model, advice], **private)
        image.change(show, image, [editor, support_told], **private)
        fields = [pairs, supports, image, editor, mask, support_told]
        # What a press of Segment would miss is on its way: the browser itself keeps it from being pressed.
        add_button.click(lambda: gr.Button(interactive=False), None, run, js=True, **private)
        added = add_button.click(add, [image, editor, mask, pairs], fields, concurrency_id="work", **private)
        added.then(lambda: gr.Button(interactive=True), None, run, js=True, **private)
        clear.click(lambda: ([], [], ""), None, [pairs, supports, support_told], **private)
        run.click(answer, [model, pairs, queries], [pictures, files, text], concurrency_id="work", **private)
    return blocks


def _supports() -> tuple[Any, ...]:
    """Where supports are given: image, mask, drawing, a button that adds them, messages, those in use, one to clear."""
    image = gr.File(label="Support image", elem_id="support-image", height=130)
    mask = gr.File(label="Mask file (or draw below)", elem_id="support-mask", height=130)
    editor = gr.ImageEditor(
        label="Draw over the object", elem_id="editor", type="numpy", format="png", sources=(),
        layers=False, transforms=(), buttons=[], brush=gr.Brush(colors=[_BRUSH], color_mode="fixed"),
    )  # fmt: skip
    add_button = gr.Button("Add support", elem_id="add")
    support_told = gr.Textbox(label="Supports: messages", lines=2, interactive=False, elem_id="support-told")
    supports = gr.Gallery(
        label="Supports", columns=4, height=190, object_fit="contain", fit_columns=False, interactive=False,
        buttons=[], elem_id="supports",
    )  # fmt: skip
    clear = gr.Button("Remove all supports", elem_id="clear")
    return image, mask, editor, add_button, support_told, supports, clear


def _images() -> tuple[Any, ...]:
    """Where images are given and answers shown: images, a button, messages, overlays, files."""
    queries = gr.File(label=f"Images to segment (up to {MOST_QUERIES})", file_count="multiple", elem_id="queries")
    run = gr.Button("Segment", variant="primary", elem_id="segment")
    text = gr.Textbox(label="Messages", lines=2, interactive=False, elem_id="told")
    pictures = gr.Gallery(
        label="Overlays", columns=2, object_fit="contain", fit_columns=False, interactive=False, buttons=[],
        elem_id="overlays",
    )  # fmt: skip
    files = gr.File(label="Masks and table", file_count="multiple", interactive=False, elem_id="files")
    return queries, run, text, pictures, files
