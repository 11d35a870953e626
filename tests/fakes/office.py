"""The smallest PDF, Word and PowerPoint files with a text."""

from __future__ import annotations

import io
import zipfile

NAMESPACES = "http://schemas.openxmlformats.org"
TYPES = f'<Types xmlns="{NAMESPACES}/package/2006/content-types">{{}}</Types>'
DEFAULTS = (
    '<Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/>'
)
OVERRIDE = (
    '<Override PartName="/{}" ContentType="application/vnd.openxmlformats-officedocument.{}+xml"/>'
)
RELATIONS = f'<Relationships xmlns="{NAMESPACES}/package/2006/relationships">{{}}</Relationships>'
RELATION = (
    f'<Relationship Id="rId1" Type="{NAMESPACES}/officeDocument/2006/relationships/{{}}" '
    'Target="{}"/>'
)
WORD = f'xmlns:w="{NAMESPACES}/wordprocessingml/2006/main"'
SLIDES = (
    f'xmlns:a="{NAMESPACES}/drawingml/2006/main" '
    f'xmlns:p="{NAMESPACES}/presentationml/2006/main" '
    f'xmlns:r="{NAMESPACES}/officeDocument/2006/relationships"'
)


def pdf(*pages: str) -> bytes:
    """Return a PDF with one line of ASCII text per page."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 10 100 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents {5 + 2 * n} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    out = "%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "0000000000 65535 f \n" + "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return f"{out}xref\n0 {len(objects) + 1}\n{table}{end}".encode("ascii")


def docx(*paragraphs: str) -> bytes:
    """Return a Word file."""
    body = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    main = "word/document.xml"
    return _package(
        {main: "wordprocessingml.document.main"},
        {main: f"<w:document {WORD}><w:body>{body}</w:body></w:document>"},
    )


def pptx(text: str) -> bytes:
    """Return a PowerPoint file with one slide."""
    main = "ppt/presentation.xml"
    slide = "ppt/slides/slide1.xml"
    shape = (
        '<p:sp><p:nvSpPr><p:cNvPr id="2" name="box"/><p:cNvSpPr/><p:nvPr/></p:nvSpPr>'
        '<p:spPr><a:prstGeom prst="rect"/></p:spPr>'
        f"<p:txBody><a:bodyPr/><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"
    )
    group = '<p:nvGrpSpPr><p:cNvPr id="1" name=""/><p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr>'
    return _package(
        {main: "presentationml.presentation.main", slide: "presentationml.slide"},
        {
            main: f'<p:presentation {SLIDES}><p:sldIdLst><p:sldId id="256" r:id="rId1"/>'
            "</p:sldIdLst></p:presentation>",
            "ppt/_rels/presentation.xml.rels": RELATIONS.format(
                RELATION.format("slide", "slides/slide1.xml")
            ),
            slide: f"<p:sld {SLIDES}><p:cSld><p:spTree>{group}<p:grpSpPr/>{shape}</p:spTree>"
            "</p:cSld></p:sld>",
        },
    )


def _package(types: dict[str, str], parts: dict[str, str]) -> bytes:
    """Return the zip file of both formats; the first part of `types` is the document."""
    overrides = "".join(OVERRIDE.format(*each) for each in types.items())
    files = {
        "[Content_Types].xml": TYPES.format(DEFAULTS + overrides),
        "_rels/.rels": RELATIONS.format(RELATION.format("officeDocument", next(iter(types)))),
        **parts,
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()
