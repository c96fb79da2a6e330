"""A GraphFlow pipeline over documents, written on `HaloChatCompletionClient`."""
