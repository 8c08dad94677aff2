//! Copies of data directories, as a customer's programs, a kill and a full disk leave them.

#[cfg(test)]
mod full;
#[cfg(test)]
mod ground;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod passes;
#[cfg(test)]
mod random;
