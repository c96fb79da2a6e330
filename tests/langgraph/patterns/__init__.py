"""Twenty-nine ways in which LangGraph applications hold and call their model."""
