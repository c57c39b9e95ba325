"""The machine: processes, storage, memory, accelerators and the cache of compiled programs."""
