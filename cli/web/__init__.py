"""`lorareg serve`: a registry over HTTP, by the protocol of the Hugging Face Hub and as pages."""
