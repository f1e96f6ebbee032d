"""The paper's three modules (refinement, color_transfer, ensemble) and the plan that a recipe is resolved into."""
