"""OCI images made by hand: layers as lists of tar entries, laid out in a folder, packed as an archive, pushed to a registry."""

import gzip
import hashlib
import io
import json
import tarfile
import time

import httpx

MEDIA = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."


def entry(name, content=b"", kind=tarfile.REGTYPE, mode=None, uid=0, gid=0, link="", xattrs=None, size=None, device=(0, 0)):
    """One entry of a layer. `size` lies about the content's length."""
    content = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.uid, info.gid = kind, link, uid, gid
    info.mode = mode if mode is not None else (0o755 if kind == tarfile.DIRTYPE else 0o644)
    info.mtime = 1_700_000_000
    info.devmajor, info.devminor = device
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}
    if size is not None:
        info.size = size
    return info, content


def folder(name, **more):
    return entry(name, kind=tarfile.DIRTYPE, **more)


def symlink(name, to, **more):
    return entry(name, kind=tarfile.SYMTYPE, link=to, **more)


def hardlink(name, to, **more):
    return entry(name, kind=tarfile.LNKTYPE, link=to, **more)


def device(name, kind=tarfile.CHRTYPE, major=1, minor=3, **more):
    return entry(name, kind=kind, device=(major, minor), **more)


def tar(entries, form=tarfile.PAX_FORMAT):
    """Exactly these entries: names are written as they are."""
    out = io.BytesIO()
    for info, content in entries:
        out.write(info.tobuf(form, "utf-8", "surrogateescape"))
        if info.type == tarfile.REGTYPE:
            out.write(content)
            out.write(b"\0" * (-len(content) % 512))
    out.write(b"\0" * 1024)
    return out.getvalue()


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layer:
    """A layer as it lies in a registry. `entries` are a list, or the bytes of a tar."""

    def __init__(self, entries, compression="gzip"):
        self.tar = entries if isinstance(entries, bytes) else tar(entries)
        self.compression = compression
        self.blob = gzip.compress(self.tar, 6, mtime=0) if compression == "gzip" else self.tar
        self.digest, self.diff_id = digest_of(self.blob), digest_of(self.tar)

    def descriptor(self):
        end = "+gzip" if self.compression == "gzip" else ""
        return {"mediaType": f"{MEDIA}layer.v1.tar{end}", "digest": self.digest, "size": len(self.blob)}


class Image:
    """An image of layers; the keywords are fields of its config, like `Env`."""

    def __init__(self, *layers, architecture="amd64", diff_ids=None, **config):
        self.layers = [each if isinstance(each, Layer) else Layer(each) for each in layers]
        diff_ids = [each.diff_id for each in self.layers] if diff_ids is None else diff_ids
        self.config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
                "history": [{"created_by": "e2e"} for _ in self.layers],
            }
        ).encode()
        self.media = f"{MEDIA}manifest.v1+json"
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": self.media,
                "config": {"mediaType": f"{MEDIA}config.v1+json", "digest": digest_of(self.config), "size": len(self.config)},
                "layers": [each.descriptor() for each in self.layers],
            }
        ).encode()

    @property
    def digest(self):
        return digest_of(self.manifest)

    def blobs(self):
        return {digest_of(self.config): self.config} | {each.digest: each.blob for each in self.layers}

    # --- as files

    def layout(self, names=("latest",)):
        """Files of an OCI layout by path."""
        descriptor = {"mediaType": self.media, "digest": self.digest, "size": len(self.manifest)}
        listed = [descriptor | {"annotations": {"org.opencontainers.image.ref.name": name}} for name in names] or [descriptor]
        files = {f"blobs/sha256/{digest.split(':')[1]}": data for digest, data in (self.blobs() | {self.digest: self.manifest}).items()}
        files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
        return files

    def archive(self, **options):
        """The layout as a tar."""
        return packed(self.layout(**options))

    def docker_archive(self, tags=("e2e:latest",), old=False):
        """As `docker save` writes it: layers are plain tars, `manifest.json` comes last."""
        config = digest_of(self.config).split(":")[1] + ".json"
        names = [f"{each.diff_id.split(':')[1]}/layer.tar" for each in self.layers]
        files = {}
        for name, each in zip(names, self.layers):
            files[name.replace("/layer.tar", "/VERSION")] = b"1.0"
            files[name] = each.tar
        files[config] = self.config
        files["manifest.json"] = json.dumps([{"Config": config, "RepoTags": list(tags), "Layers": names}]).encode()
        return packed(files)

    # --- to a registry

    def push(self, registry, repository, tag="latest", docker=False):
        """Pushes it; the reference. `docker` says it in Docker's own types."""
        with httpx.Client(base_url=registry.url, auth=registry.auth, timeout=60) as client:
            for digest, data in self.blobs().items():
                put_blob(client, repository, digest, data)
            media, manifest = self.media, self.manifest
            if docker:
                media, manifest = self.docker_manifest()
            answer = client.put(f"/v2/{repository}/manifests/{tag}", content=manifest, headers={"Content-Type": media})
            assert answer.status_code == 201, answer.text
        return f"{registry.address}/{repository}:{tag}"

    def docker_manifest(self):
        manifest = json.loads(self.manifest)
        media = f"{DOCKER}distribution.manifest.v2+json"
        manifest["mediaType"] = media
        manifest["config"]["mediaType"] = f"{DOCKER}container.image.v1+json"
        for each in manifest["layers"]:
            each["mediaType"] = f"{DOCKER}image.rootfs.diff.tar.gzip"
        return media, json.dumps(manifest).encode()


def put_blob(client, repository, digest, data):
    if client.head(f"/v2/{repository}/blobs/{digest}").status_code == 200:
        return
    begun = client.post(f"/v2/{repository}/blobs/uploads/")
    assert begun.status_code == 202, begun.text
    place = httpx.URL(begun.headers["location"]).copy_merge_params({"digest": digest})
    answer = client.put(place, content=data, headers={"Content-Type": "application/octet-stream"})
    assert answer.status_code == 201, answer.text


def push_index(registry, repository, tag, images):
    """An image for several architectures; `images` by architecture."""
    for each in images.values():
        each.push(registry, repository, f"part-{each.digest[7:19]}")
    listed = [
        {"mediaType": each.media, "digest": each.digest, "size": len(each.manifest), "platform": {"architecture": architecture, "os": "linux"}}
        for architecture, each in images.items()
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": f"{MEDIA}index.v1+json", "manifests": listed}).encode()
    answer = httpx.put(f"{registry.url}/v2/{repository}/manifests/{tag}", content=index, headers={"Content-Type": f"{MEDIA}index.v1+json"}, auth=registry.auth)
    assert answer.status_code == 201, answer.text
    return f"{registry.address}/{repository}:{tag}"


def packed(files):
    """A tar of files by path."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), int(time.time())
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
