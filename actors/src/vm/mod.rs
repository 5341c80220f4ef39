//! One VM: the pure machine, and the actor that carries it out.

pub mod machine;
pub mod restart;
