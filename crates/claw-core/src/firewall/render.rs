//! From policy to rules: one description for both families.
