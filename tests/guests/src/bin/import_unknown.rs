//! Imports an interface that larder does not provide.

mod bindings {
    #![allow(missing_docs, unreachable_pub)]

    wit_bindgen::generate!({
        inline: "
            package larder:unknown;

            interface thing {
                call: func();
            }

            world guest {
                import thing;
            }
        ",
    });
}

fn main() {
    bindings::larder::unknown::thing::call();
}
