"""Execute the notebooks and write them with their outputs.

    python colabs/execute.py               all of them: a few minutes
    python colabs/execute.py quickstart    this one

Needs the extras `test` and `notebook`. The library is that of this checkout. What would
change without a reason is left out: timestamps, and the versions of the kernel.
"""

import argparse
import base64
import io
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS = 300  # for one cell, on a busy machine


def execute(path):
    """The notebook with the outputs of now; fails where a cell does."""
    import nbclient  # extra `notebook`
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(HERE)}},
    )
    # The kernel of this Python, whatever is installed for the user.
    manager = client.create_kernel_manager()
    manager.kernel_spec.argv[0] = sys.executable
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
    notebook.metadata = nbformat.from_dict(metadata)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    return notebook


def tidy(outputs):
    """Whole texts, without what a progress bar leaves behind, and small images."""
    kept = []
    for output in outputs:
        if output.output_type != "stream":
            kept.append(output)
        elif kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", output.text)
            text = re.sub(r"[^\n]*(\r(?!\n)|━[^\n]*\n?)", "", text)
            output.text = re.sub(r"\S*ipykernel_\S*?(?=:\d+: )", "this cell", text)
        elif "image/png" in output.get("data", {}):
            output.data["image/png"] = of_256_colours(output.data["image/png"])
    return [x for x in kept if x.output_type != "stream" or x.text.strip()]


def of_256_colours(encoded):
    """A third of the bytes, and nothing that the eye would miss."""
    from PIL import Image  # comes with Matplotlib

    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    small = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def write(path, notebook):
    import nbformat

    text = nbformat.writes(notebook, indent=1)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in HERE.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", choices=[*names, []], metavar="NAME")
    for name in parser.parse_args().names or names:
        path = HERE / f"{name}.ipynb"
        write(path, execute(path))
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
