"""Cheaper pictures of OGBench's arms: fewer triangles of arm and floor, a smaller shadow map.

For a frame of 64 x 64 pixels MuJoCo draws the arm's 185,000 triangles up to three times, the floor
as 10,000 squares three times, and a shadow map of 4096 x 4096 texels. This is changed in the
compiled model, just before its renderer is made. Physics reads none of it: contacts use vertices
and convex hulls, which stay, and a plane has no end. Only rays against meshes would read their face
lists, and OGBench casts none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deflow_vision.envs.rendering import Savings
from deflow_vision.types import UserError

ARM_MESHES = "ur5e/"
"""The arm and its gripper: how the names of their meshes begin. The other meshes are the tasks'."""


def draw_with(arm: Any, savings: Savings) -> None:
    """Make an OGBench arm apply `savings` when it makes its renderer, which it does when it draws.

    Args:
        arm: the unwrapped environment.
        savings: a profile's, from `rendering.RENDER_PROFILES`.

    Raises:
        UserError: it is not one of OGBench's arms.
    """
    initialize = getattr(arm, "_initialize_renderer", None)
    if initialize is None:
        raise UserError(
            f"{type(arm).__name__} can be drawn with the render profile 'official' only: the "
            "others simplify the arm of OGBench's cube, scene and puzzle."
        )

    def apply_and_initialize() -> None:
        apply(arm.model, savings)
        initialize()

    arm._initialize_renderer = apply_and_initialize


def apply(model: Any, savings: Savings) -> None:
    """Change a compiled model (`mujoco.MjModel`) in place; a renderer made before keeps its own."""
    model.vis.quality.shadowsize = savings.shadow_size
    for geom in np.flatnonzero(model.geom_type == 0):  # mjGEOM_PLANE
        model.geom_size[geom, 2] = max(model.geom_size[geom, 2], savings.floor_square)
    for mesh in range(model.nmesh):
        if model.mesh(mesh).name.startswith(ARM_MESHES):
            _shorten(model, mesh, savings)


def _shorten(model: Any, mesh: int, savings: Savings) -> None:
    """Write a mesh's shorter face list over the beginning of its own."""
    if model.mesh_texcoordadr[mesh] >= 0:
        return  # its faces' texture coordinates would have to follow; the arm has none
    first_vertex, first_face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
    vertices = model.mesh_vert[first_vertex : first_vertex + model.mesh_vertnum[mesh]]
    old = slice(first_face, first_face + model.mesh_facenum[mesh])
    cell = min(savings.cell, float(np.ptp(vertices, axis=0).max()) / savings.min_cells)
    faces, sources = cluster(vertices, model.mesh_face[old], cell)
    new = slice(first_face, first_face + len(faces))
    model.mesh_facenormal[new] = model.mesh_facenormal[old].ravel()[sources]
    model.mesh_face[new] = faces
    model.mesh_facenum[mesh] = len(faces)


def cluster(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Shorten a face list by merging the vertices of each cell of a cubic grid.

    The vertex that stands for a cell is the one of its own that lies nearest to the planes of the
    cell's triangles, by their quadric error (Garland and Heckbert 1997; in a grid: Lindstrom 2000),
    so that edges and corners stay. Faces that collapse, or coincide with another, go.

    Args:
        vertices: (V, 3), in metres.
        faces: (F, 3), the vertices of each triangle, counter-clockwise from outside.
        cell: edge of a cell in metres.

    Returns:
        The new faces (G, 3), vertices as before; and for each of their corners (G, 3) the corner in
        `faces.ravel()` that it was, for what is kept by corner, such as normals.
    """
    stand_in = _stand_ins(vertices.astype(np.float64), faces, cell)
    merged = stand_in[faces]
    # The smallest vertex first, so that equal triangles have equal rows.
    corners = (np.argmin(merged, axis=1)[:, None] + np.arange(3)) % 3
    merged = np.take_along_axis(merged, corners, axis=1)
    corners += 3 * np.arange(len(faces))[:, None]
    a, b, c = merged.T
    kept = np.flatnonzero((a != b) & (b != c) & (c != a))
    _, first = np.unique(merged[kept], axis=0, return_index=True)
    kept = (
        kept[first] if len(kept) else np.arange(1)
    )  # a mesh needs a face; a collapsed one will do
    return merged[kept], corners[kept]


def _stand_ins(vertices: np.ndarray, faces: np.ndarray, cell: float) -> np.ndarray:
    """For each vertex (V,), the one that stands for its cell."""
    grid = np.rint(vertices / cell).astype(np.int64)
    grid -= grid.min(axis=0)
    _, cells = np.unique(np.ravel_multi_index(grid.T, grid.max(axis=0) + 1), return_inverse=True)
    num_cells = cells.max() + 1

    def of_cells(values: np.ndarray, at: np.ndarray) -> np.ndarray:
        columns = values.reshape(len(values), -1).T
        return np.stack([np.bincount(at, column, num_cells) for column in columns], axis=1)

    a, b, c = vertices[faces.T]
    normals = np.cross(b - a, c - a)  # as long as twice the triangle's area: large ones count more
    planes = np.concatenate([normals, -np.sum(normals * a, axis=1, keepdims=True)], axis=1)
    products = planes[:, :, None] * planes[:, None, :]
    quadrics = np.sum([of_cells(products, cells[corner]) for corner in faces.T], axis=0)
    quadrics = quadrics.reshape(-1, 4, 4)[cells]
    points = np.concatenate([vertices, np.ones((len(vertices), 1))], axis=1)
    errors = np.einsum("vi,vij,vj->v", points, quadrics, points)
    # Where the surface is flat every vertex fits: the one nearest to their mean is taken then.
    means = of_cells(vertices, cells) / np.bincount(cells)[:, None]
    distances = np.sum((vertices - means[cells]) ** 2, axis=1)
    errors += 1e-3 * np.einsum("vii->v", quadrics[:, :3, :3]) * distances
    order = np.lexsort((errors, cells))
    best = order[np.searchsorted(cells[order], np.arange(num_cells))]
    return best[cells]
