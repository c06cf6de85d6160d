"""What the report says of students opened outside the project."""

from __future__ import annotations

from tasks.evaluation.results import Result


def load_back(result: Result) -> dict[str, str] | None:
    """What opening the student folder outside the project showed; None where it was not tried."""
    record = result.load_back
    if not record:
        return None
    if record.get("ok"):
        difference = record.get("max_abs_difference") or 0.0
        unit = "pixel in [0, 1]" if result.data == "images" else "value in units of its spread"
        text = (
            f"It makes the same {record.get('images')} {result.data} as here; the largest "
            f"difference of a {unit} is {difference:.1g}."
        )
        return {"kind": "better", "title": "The student folder works on its own", "text": text}
    title = "The student folder does not work on its own"
    return {"kind": "worse", "title": title, "text": f"{record.get('reason', 'unknown reason')}."}


def stock_back(result: Result) -> dict[str, str] | None:
    """What the student showed in its teacher's own pipeline; None where it was not tried."""
    record = result.load_back.get("stock")
    if not record:
        return None
    name = record["pipeline"]
    if not record["ok"]:
        title = f"The student does not work in a stock {name}"
        return {"kind": "worse", "title": title, "text": f"{record['reason']}."}
    taken = f"All {record['tensors']} tensors of its LoRA are taken. " if record["tensors"] else ""
    text = (
        f"{taken}It makes the same {record['images']} images as here; the largest difference of a "
        f"pixel in [0, 1] is {record['max_abs_difference']:.1g}."
    )
    return {"kind": "better", "title": f"The student works in a stock {name}", "text": text}
