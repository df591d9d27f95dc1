//! PEFT's adapters: configurations, target matching, layers, files and merging.
