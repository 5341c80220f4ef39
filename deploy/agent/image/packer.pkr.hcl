# The lines that a Packer template of yours needs; the source is whatever makes your image.
build {
  sources = ["source.qemu.debian"]

  provisioner "file" {
    source      = "drover-agent.deb"
    destination = "/tmp/drover-agent.deb"
  }
  provisioner "shell" {
    inline = ["sudo dpkg -i /tmp/drover-agent.deb", "rm /tmp/drover-agent.deb", "sudo truncate -s 0 /etc/machine-id"]
  }
}
