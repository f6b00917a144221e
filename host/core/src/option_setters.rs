//! A macro for the setters of options.
//!
//! Structs of options are `#[non_exhaustive]`, so that a release can add an option without
//! breaking callers. Outside its crate, such a struct cannot be written as a literal: a caller
//! begins with the defaults and chains setters, as in `Limits::default().value_bytes(64 << 10)`.

/// Writes a setter for each listed field of a struct of options.
///
/// A setter has the name of its field, takes the options and returns them. Its documentation
/// links the field, which states meaning, unit and bounds.
#[doc(hidden)]
#[macro_export]
macro_rules! option_setters {
    ($options:ident { $($field:ident: $value:ty),* $(,)? }) => {
        impl $options {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](#structfield.", stringify!($field), ").")]
                #[must_use]
                pub fn $field(mut self, $field: $value) -> Self {
                    self.$field = $field.into();
                    self
                }
            )*
        }
    };
}
