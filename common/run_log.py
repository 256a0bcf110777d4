"""What one seed says while it is trained: CSV tables, TensorBoard and, with --track, Weights & Biases."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import sys
from pathlib import Path

from common.errors import InputError, said
from common.locks import atomic


class RunLog:
    """The tables of one seed's folder, and its boards.

    Attributes:
        rows: name of a table -> its rows, cells as text.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: dict[str, list[dict[str, str]]] = {}
        self.board, self.wandb = None, None

    def open_boards(self, config: dict, purge_step: int | None, track: bool) -> None:
        """TensorBoard, without what it has from `purge_step` on, and with `track` Weights & Biases.

        Args:
            config: what config.json holds.
        """
        with self._optional("board"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder), purge_step=purge_step)
        if track:
            with self._optional("wandb"):
                import wandb

                logging.raiseExceptions = False  # no tracebacks where wandb cannot write its own log
                args = config["args"]
                name = f"{config['algorithm']}_{args['env']}_seed-{args['seed']}"
                project, entity = args["wandb_project"], args["wandb_entity"] or None
                self.wandb = wandb.init(project=project, entity=entity, name=name, dir=str(self.folder), config=config,
                                        id=config["wandb_id"], resume="allow", reinit="create_new")  # fmt: skip
                self.wandb.define_metric("*", step_metric="step")

    @contextlib.contextmanager
    def _optional(self, name: str):
        """Training continues without TensorBoard (`board`) or wandb where they fail; said once."""
        try:
            yield
        except Exception as error:  # each has its own kinds
            setattr(self, name, None)
            shown = {"board": "TensorBoard", "wandb": "Weights & Biases"}[name]
            print(f"{self.folder}: {shown} failed ({said(error)}); training continues without it", file=sys.stderr)

    def open_table(self, name: str, step: int) -> None:
        """Resume NAME.csv after its row of `step`: what was logged later will be computed, and logged, again."""
        path, self.rows[name] = self.folder / f"{name}.csv", []
        if path.exists():
            try:
                text = path.read_bytes().decode()
                complete = text[: text.rfind("\n") + 1]  # a kill may have cut the last row
                rows = [row for row in csv.DictReader(io.StringIO(complete)) if int(row["step"]) <= step]
                if any(None in row for row in rows):  # more cells than columns
                    raise ValueError
                self.rows[name] = rows
            except (ValueError, KeyError, TypeError, csv.Error):
                advice = "fix it, or start from scratch with --overwrite"
                raise InputError(f"{path}: has a damaged row; {advice}") from None
            self.write_table(name)

    def write_table(self, name: str) -> None:
        """Write the rows of NAME.csv anew."""
        rows = self.rows[name]
        with atomic(self.folder / f"{name}.csv") as partial, open(partial, "w", newline="") as file:
            if rows:
                writer = csv.DictWriter(file, rows[0], restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

    def row(self, name: str, step: int, row: dict[str, float | None]) -> None:
        """Append a row to NAME.csv and send it to TensorBoard and wandb. None: an empty cell."""
        if self.rows[name] and int(self.rows[name][-1]["step"]) >= step:
            return  # written just before a kill, now computed again
        cells = {"step": str(step), **{k: "" if v is None else str(v) for k, v in row.items()}}
        path, rows = self.folder / f"{name}.csv", self.rows[name]
        rows.append(cells)
        # a method may begin or stop to report a loss with a phase of it: empty cells in the other rows
        if new := dict.fromkeys((k for k in cells if k not in rows[0]), ""):
            rows[0] |= new
            self.write_table(name)
        else:
            with open(path, "a", newline="") as file:
                writer = csv.DictWriter(file, rows[0], restval="", lineterminator="\n")
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(cells)
        tags = {k if "/" in k else f"{name}/{k}": v for k, v in row.items() if v is not None}
        if self.board:
            with self._optional("board"):
                for tag, value in tags.items():
                    self.board.add_scalar(tag, value, step)
        if self.wandb:
            with self._optional("wandb"):
                self.wandb.log(tags | {"step": step})

    def sync(self) -> None:
        """Put what was logged on the disk: a checkpoint must not outlive, in a power cut, the rows before it."""
        if self.board:
            with self._optional("board"):
                self.board.flush()
        for name in self.rows:
            with contextlib.suppress(FileNotFoundError), open(self.folder / f"{name}.csv") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        if self.board:
            with self._optional("board"):
                self.board.close()
        if self.wandb:
            with self._optional("wandb"):
                self.wandb.finish()
