#[tokio::main(flavor = "current_thread")]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let k =
        warren_runtime_vm::kernel::ensure(std::path::Path::new("/var/cache/warren/kernels")).await.unwrap();
    println!("{k:?}");
    warren_runtime_vm::initramfs::write(a[2].as_ref(), a[1].as_ref(), &k.modules).unwrap();
}
