"""What runs logged, for charts and spreadsheets."""

import re
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.core.errors import NotFound
from app.web import series
from app.web.api.samples import LedRun
from app.web.deps import Db

router = APIRouter(prefix="/runs", include_in_schema=False)


@router.get("/{run_id}/metrics.json")
def metrics(db: Db, run: LedRun) -> dict[str, Any]:
    """The curves so far, and behind them those of the last promoted round."""
    behind = series.ghost(db, run)
    return {
        **series.curves(db, run).as_json(),
        "ghost": {"label": f"Round {behind[0].number}", **behind[1].as_json()} if behind else None,
    }


@router.get("/{run_id}/metrics.csv")
def metrics_as_csv(db: Db, run: LedRun, figure: str = "") -> Response:
    """Every step; `figure` alone where one is named."""
    drawn = series.curves(db, run)
    if figure and figure not in drawn.names:
        raise NotFound("This run has logged no such figure.")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{run.stage.value}-{str(run.id)[:8]}-{figure or 'figures'}.csv")
    return Response(
        "".join(series.as_csv(drawn, [figure] if figure else drawn.names)),
        media_type="text/csv",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
