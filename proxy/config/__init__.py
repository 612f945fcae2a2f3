"""The configuration: `settings` says what there is, `file` reads it, everything else serves those two.

settings      every section as a struct: types, bounds, defaults, a line of meaning
file          from a YAML file, or from the environment alone, to a `Config`
yaml_tree     YAML text into nodes that remember their lines; `${NAME}` in scalars
read, checks  nodes into structs; settings compared with each other
problems      what is wrong, where, all of it at once
values        durations, limits, secrets that never show
schema        the JSON Schema, and the effective configuration with secrets masked
warnings      what is allowed but unwise, or without effect in this version
"""
