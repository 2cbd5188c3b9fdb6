"""Running models in onnxruntime: sessions, profiles, races."""
